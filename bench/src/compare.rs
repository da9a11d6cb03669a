//! `bench compare`: two builds of ours against each other, round by round in turn.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, json};

use crate::Output;
use crate::pair::{self, Contestant, Shape};
use crate::peer::Peer;
use crate::report::{machine, rounded};

/// Which two, and what is measured.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Folder with `meshd` and `proxy` of the older build. `cargo xtask bench compare` takes a git revision too: it builds
    /// that in release mode, below the target folder.
    old: PathBuf,
    /// The same of the newer build.
    new: PathBuf,
    #[command(flatten)]
    shape: Shape,
}

/// Measures and prints.
///
/// # Errors
/// A program is missing or fails, an answer is wrong, or a number is not plausible.
pub(crate) fn run(arguments: &Arguments, folder: &Path) -> Result<()> {
    let site = pair::prepare(folder, arguments.old.clone())?;
    let mut contestants = Vec::new();
    for (name, binaries) in [("old", &arguments.old), ("new", &arguments.new)] {
        let mut site = site.clone();
        site.folder = folder.join(name);
        site.binaries.clone_from(binaries);
        fs::create_dir_all(&site.folder)?;
        contestants.push(Contestant { name: name.to_owned(), peer: Peer::Mesh, site });
    }
    let pace = arguments.shape.pace()?;
    let (mut rows, mut ratios, mut spreads) = (Vec::new(), Map::new(), Map::new());
    for measurement in arguments.shape.measurements() {
        let seen = measurement.take(&contestants, &pace)?;
        rows.extend(pair::rows_of(&measurement, &contestants, &seen));
        if let [old, new] = seen.as_slice()
            && let Some(ratio) = pair::ratio(new, old)
        {
            ratios.insert(measurement.name.to_owned(), json!(rounded(ratio.median)));
            let mut spread = ratio.json();
            spread["leanest"] = json!("old");
            spreads.insert(measurement.name.to_owned(), spread);
        }
    }
    let results = json!({
        "bench": "compare",
        "machine": machine(),
        "pinned": site.proxy_core.is_some(),
        "rounds": pace.rounds,
        "seconds": pace.measure.as_secs_f64(),
        "old": arguments.old,
        "new": arguments.new,
        // The only peer of the new build is the old one.
        "ratio_to_leanest": ratios,
        "ratio_spread": spreads,
        "rows": rows,
    });
    pair::check(&results)?;
    match arguments.shape.output {
        Output::Json => println!("{results:#}"),
        Output::Table => println!("{}", pair::told(&results)),
    }
    Ok(())
}
