//! Engines built ahead of time, kept under what they were built from.
//!
//! An engine is good for one graph with its weights, one size of video or a range of them, one version of each library, one kind of
//! GPU and one driver, or all GPUs from Ampere on. All of that is its [`Key`], and the hash of the key is the name of its folder:
//! what does not fit is not found, and what is found is checked against the hashes of its files before it is used.

mod build;
mod error;
mod form;
mod hashes;
mod key;
mod sizes;
mod store;
#[cfg(test)]
mod tests;

pub use build::{Builder, Ready};
pub use error::EnginesError;
pub use form::Form;
pub use hashes::Hashes;
pub use key::{Gpu, Key};
pub use sizes::{Runs, Sizes, runs};
pub use store::{Entry, Event, Found, Listed, Removed, Store};
