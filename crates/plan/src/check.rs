//! What is wrong with the objects: each in itself (`intrinsic`), and among each other (`all`). Problems are the only
//! result; nothing is changed here.

mod intrinsic;
mod cross;

use api::object::Object;
use api::problem::{Code, Problem, Severity};

use crate::snapshot::Snapshot;
use crate::world::World;

pub(crate) use intrinsic::intrinsic;

/// A problem of an object.
pub(crate) fn problem(object: &Object, field: &str, code: Code, severity: Severity, message: String) -> Problem {
    Problem {
        object: object.reference(),
        origin: object.origin.clone(),
        field: field.to_owned(),
        code,
        severity,
        message,
    }
}

/// Whether the object comes into the world in spite of an Error: what is not built yet is stored and listed.
pub(crate) fn keeps_effect(problem: &Problem) -> bool {
    problem.code == Code::NotBuilt
}

/// Everything that is wrong.
pub(crate) fn all(world: &World, snapshot: &Snapshot) -> Vec<Problem> {
    let mut problems: Vec<Problem> = world.refused.values().flatten().cloned().collect();
    problems.extend(world.objects.values().flat_map(|object| intrinsic(object)));
    cross::all(world, snapshot, &mut problems);
    problems
}
