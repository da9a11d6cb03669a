//! The manifests that must work unchanged: each one in a small mesh gives exactly the problems that stand in
//! `manifests/expected.txt`. `UPDATE_GOLDEN=1` rewrites that file.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use api::mesh_config::MeshConfig;
use api::node::Role;
use api::problem::Code;
use api::xds::{KINDS, core};
use plan::{Change, ProxyIdentity, Scope, Snapshot, World};

/// Namespace that the objects are applied to if they name none.
fn namespace(file: &str) -> &'static str {
    match file.split('-').next() {
        Some("ecommerce") => "ecommerce",
        Some("company") => "istio-system",
        _ => "waste",
    }
}

/// The sample that `meshctl demo` runs, with its own settings of the mesh.
#[test]
fn the_sample_has_no_problem_but_the_secret_that_its_user_makes() {
    let folder = Path::new("../../examples/ecommerce");
    let settings = std::fs::read_to_string(folder.join("mesh-config.yaml")).unwrap();
    let (mesh, problems) = MeshConfig::parse(&settings, "mesh-config.yaml");
    assert_eq!(problems, []);
    let mut world = World::new(mesh, "cluster.local");
    let mut count = 0;
    for entry in std::fs::read_dir(folder.join("config")).unwrap() {
        let path = entry.unwrap().path();
        let decoded = api::decode::documents(&std::fs::read(&path).unwrap(), "a.yaml", "default");
        assert_eq!(decoded.problems, [], "{}", path.display());
        for object in decoded.objects {
            count += 1;
            assert!(world.apply(Change::Upsert(Box::new(object))), "{}", path.display());
        }
    }
    assert!(count > 20, "only {count} objects");
    let snapshot = Snapshot::build(&world, None);
    let found: Vec<(Code, &str, &str)> = snapshot
        .problems()
        .iter()
        .map(|problem| (problem.code, problem.object.kind.as_str(), problem.field.rsplit('.').next().unwrap()))
        .collect();
    assert_eq!(found, [(Code::ReferencedResourceNotFound, "Gateway", "credentialName")], "{:?}", snapshot.problems());
    // Nor is there one for a proxy.
    let workloads = snapshot.registry();
    let endpoints =
        workloads["services"].as_array().unwrap().iter().flat_map(|one| one["endpoints"].as_array().unwrap());
    let addresses: BTreeSet<&str> = endpoints.map(|endpoint| endpoint["address"].as_str().unwrap()).collect();
    assert!(addresses.len() > 4, "{addresses:?}");
    for address in addresses {
        let node = core::Node {
            id: format!("sidecar~{address}~a.ecommerce~ecommerce.svc.cluster.local"),
            ..core::Node::default()
        };
        let scope = Scope::of(&snapshot, &ProxyIdentity::of(&node, None).unwrap());
        assert_eq!(scope.problems(), [], "{address}");
    }
}

#[test]
fn each_manifest_gives_the_expected_problems() {
    let folder = Path::new("../../examples/manifests");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 16);
    let mut found = String::new();
    for file in files {
        writeln!(found, "{file}").unwrap();
        let mut world = World::new(MeshConfig::default(), "cluster.local");
        let environment = std::fs::read(Path::new("tests/manifests/environment.yaml")).unwrap();
        let environment = api::decode::documents(&environment, "environment.yaml", "default");
        assert!(environment.problems.is_empty(), "{:?}", environment.problems);
        let text = std::fs::read(folder.join(&file)).unwrap();
        let decoded = api::decode::documents(&text, &file, namespace(&file));
        for object in environment.objects.into_iter().chain(decoded.objects) {
            world.apply(Change::Upsert(Box::new(object)));
        }
        let snapshot = Snapshot::build(&world, None);
        let mut problems: Vec<_> =
            decoded.problems.iter().chain(snapshot.problems()).filter(|problem| problem.origin.file == file).collect();
        problems.sort();
        for problem in problems {
            let text = problem.message.as_str();
            assert!(text.starts_with(char::is_uppercase) && text.ends_with(['.', '?']), "{text:?} is not a sentence");
            writeln!(found, "  {problem}").unwrap();
        }
        // Whatever the objects, every proxy gets resources.
        for (role, address, name) in [
            (Role::Sidecar, "10.1.0.1", "user-v1.ecommerce~ecommerce"),
            (Role::Router, "10.1.0.7", "ingress.istio-system~istio-system"),
        ] {
            let node = core::Node {
                id: format!("{}~{address}~{name}.svc.cluster.local", role.as_str()),
                ..core::Node::default()
            };
            let scope = Scope::of(&snapshot, &ProxyIdentity::of(&node, None).unwrap());
            for row in KINDS {
                scope.generate(row.kind);
            }
        }
    }
    let expected = Path::new("tests/manifests/expected.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(expected, &found).unwrap();
    }
    assert_eq!(std::fs::read_to_string(expected).unwrap_or_default(), found);
}
