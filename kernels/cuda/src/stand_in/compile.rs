//! The kernels as C: compiled once a process by the system's compiler, and loaded.

use crate::source::{self, HEADERS, Source};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// The files that are C as well.
const FILES: [Source; 10] = source::PLAIN;

/// A kernel as C: its arguments, and how many items.
pub(super) type Function = unsafe extern "C" fn(*const c_void, c_int);

#[derive(Debug)]
pub(super) struct Libraries {
    by_file: HashMap<&'static str, libloading::Library>,
}

impl Libraries {
    /// A kernel, to be called only while these are kept.
    pub(super) fn function(&self, file: &str, name: &str) -> Option<Function> {
        // SAFETY: KERNEL in `warp.cuh` gives every kernel this type.
        let function = unsafe { self.by_file.get(file)?.get::<Function>(name) };
        function.ok().map(|function| *function)
    }
}

/// The libraries of this process, compiled when first asked for.
pub(super) fn once() -> Result<Arc<Libraries>, String> {
    static COMPILED: Mutex<Option<Arc<Libraries>>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(libraries) = &*compiled {
        return Ok(Arc::clone(libraries));
    }
    let libraries = Arc::new(compile()?);
    *compiled = Some(Arc::clone(&libraries));
    Ok(libraries)
}

/// All files at once, each by a compiler of its own.
fn compile() -> Result<Libraries, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).map_err(|error| format!("cannot write {name}: {error}"))
    };
    HEADERS.iter().try_for_each(|(name, text)| write(name, text))?;
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut running = Vec::new();
    for file in FILES {
        write(file.file, file.text)?;
        let mut command = Command::new(&compiler);
        command.current_dir(folder.path()).args(["-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared"]);
        if cfg!(target_arch = "x86_64") {
            // Without it a fused multiply-add is a call of the C library.
            command.arg("-march=native");
        }
        command.args(["-x", "c", file.file, "-o", &format!("{}.so", file.file), "-lm"]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        running
            .push((file.file, child.map_err(|error| format!("the C compiler `{compiler}` cannot be run: {error}"))?));
    }
    let mut by_file = HashMap::new();
    for (file, child) in running {
        let done = child.wait_with_output().map_err(|error| format!("the C compiler was lost: {error}"))?;
        if !done.status.success() {
            return Err(format!("{file} does not compile as C: {}", String::from_utf8_lossy(&done.stderr).trim()));
        }
        let path = folder.path().join(format!("{file}.so"));
        // SAFETY: a library made from our own text a moment ago; it has no initialisers.
        let library = unsafe { libloading::Library::new(&path) };
        by_file.insert(file, library.map_err(|error| format!("{file} cannot be loaded: {error}"))?);
    }
    // The files may go: loaded libraries stay mapped.
    Ok(Libraries { by_file })
}
