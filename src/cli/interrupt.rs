//! Ctrl-C and SIGTERM: what is under way ends in order, and temporary files go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::runtime::Interrupt;

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static RUNTIMES: Mutex<Vec<Interrupt>> = Mutex::new(vec![]);

/// An interrupt, and how to go on after it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Interrupted(pub String);

/// Listen for Ctrl-C and SIGTERM. The second one ends the process at once.
///
/// SIGHUP is left alone: under `nohup` it is to be ignored.
pub(super) fn listen() {
    // Without a handler they still end the process, only less tidily.
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else { return };
        let listener = std::thread::Builder::new().name("signals".into());
        let _ = listener.spawn(move || signals.forever().for_each(|_| end()));
    }
    #[cfg(not(unix))]
    let _ = ctrlc::set_handler(end);
}

fn end() {
    if ASKED.swap(true, Ordering::SeqCst) {
        std::process::exit(130);
    }
    RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Interrupt::stop);
}

/// Set once one of them came.
pub(super) fn asked() -> Arc<AtomicBool> {
    ASKED.clone()
}

/// They end this runtime's runs.
pub(super) fn ends(runtime: Interrupt) {
    let mut runtimes = RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner);
    if ASKED.load(Ordering::SeqCst) {
        runtime.stop();
    }
    runtimes.push(runtime);
}
