//! What is wrong among objects.

use api::problem::Problem;

use crate::snapshot::Snapshot;
use crate::world::World;

pub(super) fn all(world: &World, snapshot: &Snapshot, problems: &mut Vec<Problem>) {
    let _ = (world, snapshot, problems);
}
