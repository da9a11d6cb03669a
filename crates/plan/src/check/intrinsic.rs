//! What is wrong with an object in itself.

use api::object::Object;
use api::problem::Problem;

/// Everything that can be said of the object alone. An Error keeps a new version out.
pub(crate) fn intrinsic(object: &Object) -> Vec<Problem> {
    let _ = object;
    Vec::new()
}
