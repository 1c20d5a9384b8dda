# Versions of the tools that tests need beyond Rust and a C compiler; read by `install-test-tools` and `test-more`.

# The nightly compiler that miri and the fuzz targets are built with, and the commit by which the same one goes under another name.
nightly_toolchain=nightly-2026-05-20
nightly_commit=e50aa6fba
cargo_fuzz_version=0.13.2

# What speaks to `rally serve` from without, in a Python environment of its own.
openai_version=3.57.0
schemathesis_version=4.32.5
clients=${CARGO_TARGET_DIR:-$PWD/target}/clients

# NIXL's library with UCX, of which only the wheel is taken: it needs neither Python packages nor a card. The crate of the same version
# is built with g++ and libclang.
nixl_version=1.5.1
nixl=${CARGO_TARGET_DIR:-$PWD/target}/nixl

# What the distribution brings (Debian 12 or later): the programs, and the packages they are in; libclang has no program.
programs=(chromium promtool etcd g++)
packages=(chromium prometheus etcd-server g++ libclang-dev)

# Prints where the library is.
nixl_library() { find "$nixl" -name libnixl_capi.so 2> /dev/null | grep .; }

has_nixl() {
  nixl_library > /dev/null && ls /usr/lib/llvm-*/lib/libclang*.so > /dev/null 2>&1 &&
    [ "$("$nixl/bin/python" -c 'from importlib.metadata import version; print(version("nixl-cu12"))' 2> /dev/null)" = "$nixl_version" ]
}

has_programs() { local program; for program in "${programs[@]}"; do command -v "$program" > /dev/null || return 1; done; }

has_clients() {
  [ "$("$clients/bin/python" -c 'from importlib.metadata import version; print(version("openai"), version("schemathesis"))' 2> /dev/null)" \
    = "$openai_version $schemathesis_version" ]
}

# Prints the name under which rustup has that compiler; fails if it has none.
nightly() {
  local name
  for name in "$nightly_toolchain" nightly; do
    if rustc "+$name" --version 2> /dev/null | grep -q "($nightly_commit "; then
      echo "$name"
      return
    fi
  done
  return 1
}

has_miri() { cargo "+$1" miri --version > /dev/null 2>&1 && [ -d "$(rustc "+$1" --print sysroot)/lib/rustlib/src" ]; }

has_cargo_fuzz() { [ "$(cargo fuzz --version 2> /dev/null)" = "cargo-fuzz $cargo_fuzz_version" ]; }
