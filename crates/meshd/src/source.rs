//! Where objects come from. A source tells changes and what is wrong with what it read.

pub mod files;
pub mod kube;
pub mod mesh_file;

use api::problem::Problem;
use plan::Change;

/// What a source has seen.
#[derive(Default)]
pub struct Batch {
    /// Changes, in order.
    pub changes: Vec<Change>,
    /// All problems of reading, now: replaces what the source told before.
    pub problems: Vec<Problem>,
}
