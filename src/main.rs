//! The `rally` binary: hands the arguments to [`rally::cli`] and exits with its code.

fn main() -> std::process::ExitCode {
    rally::cli::main()
}
