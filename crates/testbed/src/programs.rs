//! The sample workloads in `tests/programs`, compiled when a test asks for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::error::{Doing, Error, Result};

/// Where Debian's openjdk-17-jdk-headless lives.
pub const JAVA_HOME: &str = "/usr/lib/jvm/java-17-openjdk-amd64";

/// One compiler at a time within a process; across processes each writes a file of its own and renames it.
static COMPILING: Mutex<()> = Mutex::new(());

/// The directory that holds the sources.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs")
}

/// The directory that holds what a virtual machine runs.
pub(crate) fn guest_sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guest")
}

/// Compiles `tests/programs/NAME.c` unless that is done already, and gives the program's path.
pub fn c(name: &str) -> Result<PathBuf> {
    let source = sources().join(name).with_extension("c");
    compiled(&source, name, |target| gcc(&source, target, &["-g"]))
}

/// Compiles the workload of the virtual machines: it is alone there, without any library.
pub(crate) fn guest() -> Result<PathBuf> {
    let source = guest_sources().join("guest.c");
    compiled(&source, "guest", |target| {
        gcc(&source, target, &["-static", "-s"])
    })
}

/// Assembles the guest of the machines with KVM: an image in the place of the firmware.
pub(crate) fn tiny_guest() -> Result<PathBuf> {
    let source = guest_sources().join("tiny.S");
    compiled(&source, "tiny", |target| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-nostdlib", "-static", "-Wl,--build-id=none"])
            .args(["-Wl,-Ttext=0x7c00", "-Wl,--oformat=binary", "-o"])
            .arg(target)
            .arg(&source);
        gcc
    })
}

fn gcc(source: &Path, target: &Path, more: &[&str]) -> Command {
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"])
        .args(more);
    gcc.arg("-o").arg(target).arg(source);
    gcc
}

/// Compiles `tests/programs/NAME.java` into a jar unless that is done already, and gives the jar's path.
pub fn java(name: &str) -> Result<PathBuf> {
    let source = sources().join(name).with_extension("java");
    compiled(&source, &format!("{name}.jar"), |target| {
        let classes = target.with_extension("classes");
        let script = r#"rm -rf "$2" && "$1/bin/javac" -d "$2" "$4" && "$1/bin/jar" --create --file "$3" -C "$2" . && rm -rf "$2""#;
        let mut sh = Command::new("sh");
        sh.args(["-c", script, "sh", JAVA_HOME])
            .arg(classes)
            .arg(target)
            .arg(&source);
        sh
    })
}

/// Runs the compiler unless its product is newer than the source.
fn compiled(source: &Path, name: &str, compiler: impl Fn(&Path) -> Command) -> Result<PathBuf> {
    let _one = COMPILING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let directory = std::env::temp_dir().join("whimbrel-test-programs");
    let target = directory.join(name);
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    let written = changed(source).doing(|| format!("cannot look at {}", source.display()))?;
    if changed(&target).is_ok_and(|built| built > written) {
        return Ok(target);
    }
    fs::create_dir_all(&directory).doing(|| format!("cannot make {}", directory.display()))?;
    let unfinished = directory.join(format!("{name}.{}", std::process::id()));
    let output = compiler(&unfinished)
        .output()
        .doing(|| format!("cannot compile {}", source.display()))?;
    if !output.status.success() {
        return Err(Error::Failed {
            command: format!("compile {}", source.display()),
            host: "this machine".to_string(),
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    fs::rename(&unfinished, &target).doing(|| format!("cannot rename {}", unfinished.display()))?;
    Ok(target)
}
