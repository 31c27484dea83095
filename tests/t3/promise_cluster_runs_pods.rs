//! The local cluster is a real one: it admits, runs, limits and balances pods as any Kubernetes does.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kube::{
    Api, Client,
    api::{LogParams, PostParams},
};
use serde_json::{Value, json};
use yolo_testkit::cluster::{LocalCluster, SANDBOX_IMAGE, Tier, wait_for};

const LIMIT: Duration = Duration::from_mins(1);

/// Requests over which two pods must share. One of them stays unused by chance once in 2³⁹ runs.
const REQUESTS: usize = 40;

/// A web server whose answer is its pod's name, within what Pod Security `restricted` allows.
fn web_pod(shell: &str) -> Value {
    json!({
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "web",
            "image": SANDBOX_IMAGE,
            "command": ["/bin/busybox", "sh", "-c", shell],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "pages", "mountPath": "/pages"}],
        }],
        "volumes": [{"name": "pages", "emptyDir": {}}],
    })
}

async fn create<K>(client: &Client, namespace: &str, object: Value) -> kube::Result<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + serde::Serialize
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    let object = serde_json::from_value(object).unwrap();
    Api::<K>::namespaced(client.clone(), namespace).create(&PostParams::default(), &object).await
}

#[test]
fn service_balances_over_the_restricted_pods_of_a_deployment() {
    let Some(cluster) = LocalCluster::shared(Tier::T3) else { return };
    let namespace = cluster.namespace("pods").unwrap();
    let serve = "/bin/busybox hostname >/pages/index.html; exec /bin/busybox httpd -f -p 8080 -h /pages";
    let address = cluster.block_on(async |client| {
        let labels = json!({"app": "web"});
        let template = json!({"metadata": {"labels": labels}, "spec": web_pod(serve)});
        let spec = json!({"replicas": 2, "selector": {"matchLabels": labels}, "template": template});
        let deployment = json!({"metadata": {"name": "web"}, "spec": spec});
        create::<Deployment>(&client, &namespace, deployment).await.unwrap();
        let spec = json!({"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]});
        let service: Service =
            create(&client, &namespace, json!({"metadata": {"name": "web"}, "spec": spec})).await.unwrap();
        let deployments = Api::<Deployment>::namespaced(client, &namespace);
        let ready = async || (deployments.get("web").await.ok()?.status?.ready_replicas? == 2).then_some(());
        wait_for("two ready pods", LIMIT, ready).await.unwrap();
        service.spec.unwrap().cluster_ip.unwrap()
    });
    let address = address.unwrap();
    cluster
        .block_on(async |_client| {
            // kube-proxy learns of each pod a moment after it is ready.
            let mut pods = BTreeSet::new();
            let both = async || {
                pods.insert(page(&address).await.ok()?);
                (pods.len() == 2).then_some(())
            };
            wait_for("both pods to answer", LIMIT, both).await.unwrap();
            let served_by: BTreeSet<_> =
                futures::stream::iter(0..REQUESTS).then(|_| page(&address)).try_collect().await.unwrap();
            assert_eq!(served_by, pods);
        })
        .unwrap();
}

/// One request on a connection of its own, because a Service balances connections.
async fn page(address: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut connection = tokio::net::TcpStream::connect((address, 80)).await?;
    connection.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn pod_with_more_rights_than_restricted_is_refused() {
    let Some(cluster) = LocalCluster::shared(Tier::T3) else { return };
    let namespace = cluster.namespace("refused").unwrap();
    let mut spec = web_pod("true");
    spec["securityContext"]["runAsNonRoot"] = json!(false);
    let refused = cluster.block_on(async |client| {
        create::<Pod>(&client, &namespace, json!({"metadata": {"name": "root"}, "spec": spec})).await
    });
    let reason = refused.unwrap().unwrap_err().to_string();
    assert!(reason.contains("violates PodSecurity") && reason.contains("runAsNonRoot"), "{reason}");
}

/// A pod that would use a whole core for as long as it lives gets half a core, in slices of 10 ms.
#[test]
fn cpu_limit_of_a_pod_is_enforced() {
    let Some(cluster) = LocalCluster::shared(Tier::T3) else { return };
    let namespace = cluster.namespace("limit").unwrap();
    // Counts for 2 to 3 s, then prints the shell's own CPU time (`0m1.250s` user first) and what the cgroup says of it,
    // where version 1 keeps that and where version 2 does.
    let burn = "s=$(/bin/busybox date +%s); while [ $(($(/bin/busybox date +%s) - s)) -lt 3 ]; do i=0; \
                while [ $i -lt 5000 ]; do i=$((i + 1)); done; done; times; cd /sys/fs/cgroup; \
                /bin/busybox cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.stat cpu.max cpu.stat 2>/dev/null; \
                exit 0";
    let mut spec = web_pod(burn);
    spec["restartPolicy"] = json!("Never");
    let log = cluster
        .block_on(async |client| {
            create::<Pod>(&client, &namespace, json!({"metadata": {"name": "burn"}, "spec": spec})).await.unwrap();
            let pods = Api::<Pod>::namespaced(client, &namespace);
            let done = async || (pods.get("burn").await.ok()?.status?.phase? == "Succeeded").then_some(());
            wait_for("the pod's end", LIMIT, done).await.unwrap();
            pods.logs("burn", &LogParams::default()).await.unwrap()
        })
        .unwrap();
    let mut words = log.split_whitespace();
    let user = words.next().unwrap().trim_start_matches("0m").trim_end_matches('s');
    // Half of at most 3.1 s. Without the limit an idle machine gives at least 2 s; a busy one may give less than half.
    assert!(user.parse::<f64>().unwrap() < 1.8, "{log}");
    assert!(words.any(|word| word == "5000") && words.any(|word| word == "10000"), "{log}");
    let mut words = log.split_whitespace().skip_while(|word| *word != "nr_throttled");
    let throttled: u32 = words.nth(1).unwrap().parse().unwrap();
    assert!(throttled > 0, "{log}");
}
