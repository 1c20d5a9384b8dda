//! Kernels from text to a cubin, by NVRTC for one architecture, through the disk cache. Loads no module.

use crate::cache::{CubinCache, Fingerprint};
use crate::error::CudaError;
use crate::probe;
use crate::source::{HEADERS, Source};
use cudarc::nvrtc::{result, sys};
use std::ffi::{CString, c_char, c_int};

/// What every kernel is compiled with. The architecture is a real one, so that inline PTX is assembled and checked here
/// and not when the module is loaded.
const OPTIONS: [&str; 2] = ["--std=c++17", "--extra-device-vectorization"];

/// A file's kernels are optimised by as many threads as there are: the same code. Since NVRTC 13.0.
const SPLIT: &str = "--split-compile=0";

/// NVRTC's version, such as (13, 0).
///
/// # Errors
/// [`CudaError::NoCompiler`] without the library.
pub fn compiler_version() -> Result<(i32, i32), CudaError> {
    probe::require_compiler()?;
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: the library is there, and both pointers are to integers of this frame.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(|_| CudaError::NoCompiler)?;
    Ok((major, minor))
}

/// The cubin of a kernel file for `arch` (`sm_90a`), from the cache or freshly compiled and then kept there.
///
/// A cache that cannot be written is only slower, not an error.
///
/// # Errors
/// [`CudaError::NoCompiler`] without NVRTC, [`CudaError::Compile`] with the compiler's log.
pub fn cubin(source: &Source, arch: &str, cache: Option<&CubinCache>) -> Result<Vec<u8>, CudaError> {
    let version = compiler_version()?;
    cached(source, arch, version, cache, || compile(source, arch))
}

/// Compiles at once what the cache does not have of these files, for [`cubin`] to find. What fails, fails there.
pub fn prepare(sources: &[&Source], arch: &str, cache: &CubinCache) {
    let Ok(version) = compiler_version() else { return };
    let missing = |source: &&&Source| !cache.path(source.file, key(source, arch, version)).exists();
    std::thread::scope(|scope| {
        for source in sources.iter().filter(missing) {
            scope.spawn(|| cubin(source, arch, Some(cache)).is_ok());
        }
    });
}

/// [`cubin`] with the compiler as an argument.
pub fn cached(
    source: &Source,
    arch: &str,
    version: (i32, i32),
    cache: Option<&CubinCache>,
    compile: impl FnOnce() -> Result<Vec<u8>, CudaError>,
) -> Result<Vec<u8>, CudaError> {
    let Some(cache) = cache else { return compile() };
    let key = key(source, arch, version);
    if let Some(cubin) = cache.read(source.file, key) {
        return Ok(cubin);
    }
    let cubin = compile()?;
    // A full or read-only disk costs the next start some time and nothing else.
    let _ = cache.write(source.file, key, &cubin);
    Ok(cubin)
}

/// Of everything that a cubin is made from: text, headers, options, architecture, compiler.
pub fn key(source: &Source, arch: &str, version: (i32, i32)) -> Fingerprint {
    let mut key = Fingerprint::new().with(source.file.as_bytes()).with(source.text.as_bytes());
    for (name, text) in HEADERS {
        key = key.with(name.as_bytes()).with(text.as_bytes());
    }
    for option in OPTIONS {
        key = key.with(option.as_bytes());
    }
    key.with(arch.as_bytes()).with(&version.0.to_le_bytes()).with(&version.1.to_le_bytes())
}

/// A program, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the handle came from nvrtcCreateProgram and is destroyed once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn text(text: &str) -> CString {
    CString::new(text).expect("kernels and options hold no NUL")
}

/// Compiles without the cache.
///
/// # Errors
/// As [`cubin`].
pub fn compile(source: &Source, arch: &str) -> Result<Vec<u8>, CudaError> {
    probe::require_compiler()?;
    let refused = |log: String| CudaError::Compile { file: source.file, arch: arch.to_owned(), log };
    let (name, code) = (text(source.file), text(source.text));
    let headers: Vec<(CString, CString)> = HEADERS.iter().map(|(name, code)| (text(name), text(code))).collect();
    let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
    let codes: Vec<*const c_char> = headers.iter().map(|(_, code)| code.as_ptr()).collect();
    let mut handle = std::ptr::null_mut();
    // SAFETY: all strings outlive the call, which copies them; both arrays have `headers.len()` entries.
    unsafe {
        sys::nvrtcCreateProgram(
            &mut handle,
            code.as_ptr(),
            name.as_ptr(),
            headers.len() as c_int,
            codes.as_ptr(),
            names.as_ptr(),
        )
    }
    .result()
    .map_err(|error| refused(format!("{:?}", error.0)))?;
    let program = Program(handle);
    let mut options: Vec<String> = OPTIONS.iter().map(|option| (*option).to_owned()).collect();
    options.push(format!("--gpu-architecture={arch}"));
    if compiler_version()?.0 >= 13 {
        options.push(SPLIT.to_owned());
    }
    // SAFETY: the program is alive.
    unsafe { result::compile_program(program.0, &options) }
        .map_err(|error| refused(log(&program).unwrap_or_else(|| format!("{:?}", error.0))))?;
    binary(&program).ok_or_else(|| refused("no cubin came back".to_owned()))
}

fn log(program: &Program) -> Option<String> {
    // SAFETY: the program is alive.
    let raw = unsafe { result::get_program_log(program.0) }.ok()?;
    let bytes: Vec<u8> = raw.iter().map(|c| *c as u8).take_while(|byte| *byte != 0).collect();
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

fn binary(program: &Program) -> Option<Vec<u8>> {
    let mut bytes = 0;
    // SAFETY: the program is alive and compiled; the size is this frame's.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &mut bytes) }.result().ok()?;
    let mut cubin = vec![0u8; bytes];
    // SAFETY: the buffer has the size just asked for.
    unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) }.result().ok()?;
    (bytes > 0).then_some(cubin)
}
