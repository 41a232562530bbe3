//! Ctrl-C: what is under way ends in order, and temporary files go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use crate::runtime::Interrupt;

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static RUNTIME: OnceLock<Interrupt> = OnceLock::new();

/// Listen for Ctrl-C. The second one ends the process at once.
pub(super) fn listen() {
    // Without a handler Ctrl-C still ends the process, only less tidily.
    let _ = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        if let Some(runtime) = RUNTIME.get() {
            runtime.stop();
        }
    });
}

/// Set once Ctrl-C was pressed.
pub(super) fn asked() -> Arc<AtomicBool> {
    ASKED.clone()
}

/// Ctrl-C ends this runtime's runs.
pub(super) fn ends(runtime: Interrupt) {
    let runtime = RUNTIME.get_or_init(|| runtime);
    if ASKED.load(Ordering::SeqCst) {
        runtime.stop();
    }
}
