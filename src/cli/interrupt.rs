//! Ctrl-C: what is under way ends in order, and temporary files go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::runtime::Interrupt;

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static RUNTIMES: Mutex<Vec<Interrupt>> = Mutex::new(vec![]);

/// Listen for Ctrl-C. The second one ends the process at once.
pub(super) fn listen() {
    // Without a handler Ctrl-C still ends the process, only less tidily.
    let _ = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Interrupt::stop);
    });
}

/// Set once Ctrl-C was pressed.
pub(super) fn asked() -> Arc<AtomicBool> {
    ASKED.clone()
}

/// Ctrl-C ends this runtime's runs.
pub(super) fn ends(runtime: Interrupt) {
    let mut runtimes = RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner);
    if ASKED.load(Ordering::SeqCst) {
        runtime.stop();
    }
    runtimes.push(runtime);
}
