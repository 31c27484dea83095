//! After a stop the machine is as it was before the start.

use std::{fs, path::Path, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::json;
use yolo_testkit::cluster::{Identity, Instance, LocalCluster, SANDBOX_IMAGE, Tier, wait_for};

/// Settings of the host that a kubelet changes if it is let.
const HOST_SETTINGS: [&str; 4] =
    ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys"];

fn host_settings() -> Vec<String> {
    HOST_SETTINGS.map(|setting| fs::read_to_string(Path::new("/proc/sys").join(setting)).unwrap_or_default()).into()
}

/// Live processes whose command line names something of the instance.
fn named_processes(instance: &Instance) -> Vec<String> {
    let directory = instance.path("").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let commands = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    commands.filter(|command| command.contains(&directory)).collect()
}

/// The cgroups of the instance, in whatever tree.
fn cgroups(instance: &Instance) -> Vec<String> {
    let trees = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|tree| tree.path());
    let ours = trees.chain(["/sys/fs/cgroup".into()]).map(|tree| tree.join(instance.cgroup()));
    ours.filter(|cgroup| cgroup.is_dir()).map(|cgroup| cgroup.display().to_string()).collect()
}

#[test]
fn stopped_cluster_leaves_no_process_mount_cgroup_namespace_or_directory() {
    // Beside the shared cluster: two instances live side by side.
    let Some(_other) = LocalCluster::shared(Tier::T3) else { return };
    let before = host_settings();
    let name = format!("stopped-{}", std::process::id());
    let cluster = LocalCluster::start_guarded(&name, Tier::T3).unwrap();
    run_a_pod(&cluster);
    let instance = cluster.instance().clone();
    let members = instance.members();
    // Eight processes of the cluster, a shim, a sandbox and a container.
    assert!(members.len() >= 11, "{members:?}");
    assert!(!named_processes(&instance).is_empty() && !cgroups(&instance).is_empty());

    cluster.stop().unwrap();

    assert!(!members.iter().any(|(_, process)| Identity::alive(*process)), "{members:?}");
    assert_eq!(named_processes(&instance), [""; 0]);
    assert_eq!(cgroups(&instance), [""; 0]);
    assert!(!instance.exists());
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&name));
    assert_eq!(host_settings(), before);
    LocalCluster::down(&name).unwrap(); // and stopping what is stopped is no error
}

#[test]
fn start_clears_what_a_killed_run_left() {
    let Some(_other) = LocalCluster::shared(Tier::T3) else { return };
    let name = format!("killed-{}", std::process::id());
    let killed = LocalCluster::start_guarded(&name, Tier::T3).unwrap();
    run_a_pod(&killed);
    let old = killed.instance().members();
    // Without its guard nothing stops the cluster any more: as after a SIGKILL to everything of a test run.
    let guard = killed.instance().owner().unwrap();
    guard.kill();
    assert!(guard.wait_end(Duration::from_secs(10)));
    let again = LocalCluster::start_guarded(&name, Tier::T3).unwrap();
    assert!(!old.iter().any(|(_, process)| process.alive()), "{old:?}");
    run_a_pod(&again);
    again.stop().unwrap();
}

fn run_a_pod(cluster: &LocalCluster) {
    cluster
        .block_on(async |client| {
            let pods = Api::<Pod>::namespaced(client, "default");
            let containers = json!([{"name": "sleep", "image": SANDBOX_IMAGE}]);
            let pod = json!({"metadata": {"name": "sleep"}, "spec": {"containers": containers}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            // The service account, which admission asks for, is made a moment after the namespace.
            let created = async || pods.create(&PostParams::default(), &pod).await.ok();
            wait_for("the pod to be admitted", Duration::from_secs(20), created).await.unwrap();
            let running = async || (pods.get("sleep").await.ok()?.status?.phase? == "Running").then_some(());
            wait_for("the pod to run", Duration::from_mins(1), running).await.unwrap();
        })
        .unwrap();
}
