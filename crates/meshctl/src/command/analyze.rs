//! `meshctl analyze`: the control plane's own checks, on files.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use api::decode;
use api::mesh_config::MeshConfig;
use api::object::{KINDS, Kind, KindRow, Object};
use api::problem::{Code, Problem, Severity};
use plan::{Change, Snapshot, World};

use crate::cli::AnalyzeArguments;
use crate::cluster::Cluster;
use crate::print::{Format, structured, table};

/// istioctl's exit code for "something was found".
const FOUND: u8 = 79;

/// All codes, a line each.
pub(super) fn list() -> String {
    let rows: Vec<Vec<String>> =
        Code::ALL.iter().map(|code| vec![code.id().to_owned(), code.doc().to_owned()]).collect();
    table(&["CODE", "MEANING"], &rows)
}

pub(super) async fn run(cluster: Option<&Cluster>, arguments: AnalyzeArguments) -> Result<ExitCode> {
    let mut problems = Vec::new();
    let mesh = match &arguments.mesh_config {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
            let (mesh, found) = MeshConfig::parse(&text, &file.display().to_string());
            problems.extend(found);
            mesh
        }
        None => MeshConfig::default(),
    };
    let mut world = World::new(mesh, &arguments.domain);
    if let Some(cluster) = cluster {
        let (objects, found) = in_cluster(cluster).await?;
        problems.extend(found);
        for object in objects {
            world.apply(Change::Upsert(Box::new(object)));
        }
    }
    let (mut files, mut texts) = (Vec::new(), BTreeMap::new());
    for path in &arguments.paths {
        collect(path, true, &mut files)?;
    }
    for file in &files {
        let (name, text) = read(file)?;
        let decoded = decode::documents(&text, &name, arguments.namespace.as_deref().unwrap_or("default"));
        problems.extend(decoded.problems);
        for object in decoded.objects {
            world.apply(Change::Upsert(Box::new(object)));
        }
        texts.insert(name, text);
    }
    let snapshot = Snapshot::build(&world, None);
    // What the plan tells knows the object's line; here the text is at hand to find the field's.
    problems.extend(snapshot.problems().iter().cloned().map(|mut problem| {
        if let Some(text) = texts.get(&problem.origin.file).filter(|_| problem.origin.line > 0) {
            problem.origin.line = decode::line_of(text, &problem.origin, &problem.field);
        }
        problem
    }));
    problems.retain(|problem| !is_suppressed(problem, &arguments.suppress));
    if let (Some(_), Some(namespace)) = (cluster, &arguments.namespace) {
        problems.retain(|problem| problem.object.namespace == *namespace || !problem.origin.file.is_empty());
    }
    problems.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    problems.dedup();
    let worst = problems.iter().map(|problem| problem.severity).max();
    problems.retain(|problem| problem.severity >= arguments.output_threshold);
    if arguments.output == Format::Table {
        for problem in &problems {
            println!("{problem}");
        }
        eprintln!("{}", summary(&problems, world.objects().count(), files.len()));
    } else {
        print!("{}", structured(arguments.output, &problems)?);
    }
    let failed = worst.is_some_and(|worst| worst >= arguments.failure_threshold);
    Ok(if failed { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

/// What the control plane of a cluster plans from.
pub(super) async fn in_cluster(cluster: &Cluster) -> Result<(Vec<Object>, Vec<Problem>)> {
    let planned = |row: &&KindRow| {
        row.strict
            || matches!(
                row.kind,
                Kind::Namespace | Kind::Service | Kind::EndpointSlice | Kind::Pod | Kind::Secret | Kind::ConfigMap
            )
    };
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    for row in KINDS.iter().filter(planned) {
        let version =
            if row.group.is_empty() { row.storage.to_owned() } else { format!("{}/{}", row.group, row.storage) };
        let listed = match cluster.list(&version, row.name, None, "", "").await {
            Ok(listed) => listed,
            // A kind of ours that is not installed has no objects.
            Err(_) if row.strict => continue,
            Err(error) => return Err(error),
        };
        for object in listed {
            let decoded = decode::object(&object, "", "default");
            problems.extend(decoded.problems);
            objects.extend(decoded.objects);
        }
    }
    Ok((objects, problems))
}

fn summary(problems: &[Problem], objects: usize, files: usize) -> String {
    let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    match (errors, warnings) {
        (0, 0) => format!("No problem found in {objects} objects of {files} files."),
        _ => format!("{errors} errors and {warnings} warnings in {objects} objects of {files} files."),
    }
}

fn is_suppressed(problem: &Problem, rules: &[String]) -> bool {
    rules.iter().any(|rule| match rule.split_once('=') {
        None => rule == problem.code.id(),
        Some((code, object)) => {
            let named = match problem.object.namespace.as_str() {
                "" => format!("{}/{}", problem.object.kind, problem.object.name),
                namespace => format!("{}/{}.{namespace}", problem.object.kind, problem.object.name),
            };
            code == problem.code.id() && (object == named || object == "*")
        }
    })
}

/// Files named by the user are read whatever their ending; of folders only manifests are.
///
/// # Errors
/// A file or folder cannot be read.
pub(super) fn collect(path: &Path, named: bool, files: &mut Vec<PathBuf>) -> Result<()> {
    if path == Path::new("-") {
        files.push(path.to_owned());
        return Ok(());
    }
    let metadata = std::fs::metadata(path).with_context(|| format!("{} cannot be read", path.display()))?;
    if metadata.is_dir() {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        entries.sort();
        return entries.iter().filter(|entry| !is_hidden(entry)).try_for_each(|entry| collect(entry, false, files));
    }
    let manifest = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml" || ending == "json");
    if named || manifest {
        files.push(path.to_owned());
    }
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

pub(super) fn read(file: &Path) -> Result<(String, Vec<u8>)> {
    if file == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).context("standard input cannot be read")?;
        return Ok(("standard input".to_owned(), text));
    }
    let text = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok((file.display().to_string(), text))
}
