//! Ctrl-C: once to cancel cleanly, twice to leave the clean-up to the guardian.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use whimbrel_kernel::signal::Interrupts;

use crate::exit::Code;

/// A flag that the user's wish to stop sets. To be called before any other thread is started.
pub fn watch() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupts = Interrupts::block()?;
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancel);
    let wait = move || {
        interrupts.wait();
        flag.store(true, Ordering::Relaxed);
        interrupts.wait();
        // Not a clean end: whoever guards the migration finds its journal and does the rest.
        std::process::exit(Code::Cancelled as i32);
    };
    thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(wait)
        .context("cannot start a thread")?;
    Ok(cancel)
}
