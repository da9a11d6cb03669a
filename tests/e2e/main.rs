//! Tests on a real Kubernetes, in an order that tells a story: install, take a shop in, change it under load, break things, take
//! everything away. `cargo xtask e2e` starts a cluster and runs them; `cargo test --workspace --test e2e [FILTER]` takes the one
//! that `KUBECONFIG` names. With a filter, the scenarios that prepare others run all the same; not so with `--prepared`, for a
//! cluster on which they have run.

// What tests are made of stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kubectl;
mod load;
mod explain;
mod shop;
mod install;
mod releases;
mod trust;
mod pods;
mod outages;
mod clients;
mod uninstall;
mod cni;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use kubectl::Cluster;

/// What one does; the note is shown beside its name.
type Run = fn(&Cluster) -> Result<String>;

/// A scenario.
struct Scenario {
    name: &'static str,
    run: Run,
    /// Others rest on it: it runs whatever the filter says, and without it the rest makes no sense.
    prepares: bool,
    /// Kills parts of the cluster itself, or looks into its nodes.
    breaks_parts: bool,
}

const fn scenario(name: &'static str, run: Run) -> Scenario {
    Scenario { name, run, prepares: false, breaks_parts: false }
}

const fn preparation(name: &'static str, run: Run) -> Scenario {
    Scenario { name, run, prepares: true, breaks_parts: false }
}

const fn breakage(name: &'static str, run: Run) -> Scenario {
    Scenario { name, run, prepares: false, breaks_parts: true }
}

const SCENARIOS: &[Scenario] = &[
    preparation("install", install::demo),
    scenario("install_again_changes_nothing", install::again),
    scenario("dry_run_over_an_installation", install::dry_over),
    preparation("shop_without_mesh", shop::without_mesh),
    preparation("label_and_restart", shop::joins),
    preparation("routes_and_mutual_tls", shop::configured),
    scenario("order_through_the_gateway", shop::order),
    scenario("canary_weights_change_under_load", releases::canary),
    scenario("every_deployment_is_replaced_under_load", releases::replaced),
    scenario("servers_that_exit_at_once_are_replaced_under_load", releases::replaced_abruptly),
    scenario("strict_refuses_a_pod_outside", trust::strict),
    scenario("partial_migration", trust::migration),
    scenario("policies_let_in_and_refuse", trust::policies),
    scenario("tokens_of_an_issuer_that_comes_later", trust::tokens),
    scenario("decisions_of_a_provider", trust::decisions),
    scenario("job_ends", pods::job),
    scenario("init_container_uses_the_network", pods::init_container),
    scenario("stateful_ring", pods::ring),
    scenario("application_sees_its_caller", pods::transparent),
    scenario("cron_job_ends", pods::cron_job),
    scenario("probes_under_strict", pods::probes),
    scenario("names_that_no_name_server_knows", pods::names),
    scenario("logs_without_knowing_pods", pods::logs),
    scenario("proxy_config_by_pod", pods::config),
    scenario("analyze_where_it_is_told", install::analyzed),
    scenario("metrics_of_application_and_proxy", pods::metrics),
    scenario("pod_killed_under_load", outages::pod),
    scenario("control_plane_killed_under_load", outages::control_plane),
    scenario("control_plane_replaced_while_objects_are_written", outages::replaced_while_written),
    scenario("two_replicas_share_proxies_and_one_writes", outages::two_replicas),
    scenario("objects_of_a_tag_are_its_revisions", install::tagged),
    breakage("api_server_restarted_under_load", outages::api_server),
    breakage("api_server_out_of_reach_under_load", outages::api_server_out_of_reach),
    breakage("watches_that_are_too_old_begin_anew", outages::watches_too_old),
    breakage("kubelet_restarted_under_load", outages::kubelet),
    scenario("python_client_writes_each_version", clients::python),
    scenario("manifests_injected_by_hand", clients::inject),
    scenario("uninstall_leaves_pods_serving", uninstall::kept),
    scenario("restart_without_mesh", uninstall::left),
    scenario("install_once_more", uninstall::returned),
    scenario("canary_upgrade_ends_with_the_default_tag", install::upgraded),
    scenario("purge_leaves_nothing", uninstall::purged),
    breakage("cni_captures_restricted_pods", cni::restricted),
];

fn main() -> ExitCode {
    // libtest's own flags (`--nocapture`) mean nothing here.
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    let cluster = match Cluster::of_environment() {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    run(&cluster, &filter, std::env::args().any(|word| word == "--prepared"))
}

fn run(cluster: &Cluster, filter: &str, prepared_before: bool) -> ExitCode {
    let begun = Instant::now();
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    let mut prepared = true;
    for scenario in SCENARIOS {
        let wanted = if scenario.prepares { !prepared_before } else { scenario.name.contains(filter) };
        if !wanted {
            continue;
        }
        if scenario.breaks_parts && !cluster.has_parts() {
            println!("ignored {}: this cluster's parts cannot be killed", scenario.name);
            ignored += 1;
            continue;
        }
        if !prepared {
            println!("FAILED {}: what it rests on has failed", scenario.name);
            failed += 1;
            continue;
        }
        let started = Instant::now();
        match (scenario.run)(cluster) {
            Ok(note) => {
                passed += 1;
                let note = if note.is_empty() { note } else { format!(": {note}") };
                println!("ok {} ({:.0} s){note}", scenario.name, started.elapsed().as_secs_f64());
            }
            Err(error) => {
                failed += 1;
                prepared = !scenario.prepares;
                println!("FAILED {} ({:.0} s): {error:#}", scenario.name, started.elapsed().as_secs_f64());
                explain::print(cluster);
            }
        }
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {result}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        begun.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
