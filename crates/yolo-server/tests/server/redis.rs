//! A real `redis-server` of a test's own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use yolo_server::Config;

use crate::support::{PATIENCE, eventually};

pub const SCOPE: &str = "kitchen/fork";
const ANSWERS: &str = "yolo:{kitchen/fork}:c:";

/// Remembers nothing across a restart. Ends with the test.
pub struct Redis {
    child: Child,
    port: u16,
    /// Where it speaks TLS.
    tls_port: u16,
    directory: TempDir,
}

impl Redis {
    /// Starts one; `None`, with a line that says so, where the program is missing.
    pub async fn start(test: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let identity = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(directory.path().join("certificate"), identity.cert.pem()).unwrap();
        std::fs::write(directory.path().join("key"), identity.signing_key.serialize_pem()).unwrap();
        // Both at once: one after the other could be the same.
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [port, tls_port] = ports.map(|port| port.local_addr().unwrap().port());
        match spawn((port, tls_port), directory.path()) {
            Ok(child) => {
                let redis = Self { child, port, tls_port, directory };
                redis.ready().await;
                Some(redis)
            }
            Err(error) => {
                println!("SKIPPED {test}: redis-server: {error}");
                assert!(std::env::var_os("CI").is_none(), "redis-server is required in CI");
                None
            }
        }
    }

    /// The settings of a server that shares this store.
    pub fn shared_by(&self, config: Config) -> Config {
        let file = self.url_file(&format!("redis://127.0.0.1:{}\n", self.port));
        Config { redis_url_file: Some(file), redis_scope: SCOPE.to_owned(), ..config }
    }

    /// [`Self::shared_by`], through something that listens on this port.
    pub fn shared_through(&self, port: u16, config: Config) -> Config {
        let config = self.shared_by(config);
        self.url_file(&format!("redis://127.0.0.1:{port}"));
        config
    }

    /// Where it listens.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// A file with the address at which it speaks TLS.
    pub fn tls_url_file(&self) -> PathBuf {
        self.url_file(&format!("rediss://127.0.0.1:{}", self.tls_port))
    }

    /// The certificate that it shows, which nobody else has signed.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate")
    }

    fn url_file(&self, url: &str) -> PathBuf {
        let file = self.directory.path().join("url");
        std::fs::write(&file, url).unwrap();
        file
    }

    /// Stops answering, and keeps its connections: the worst way to be away.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Ends at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Comes back at the same address, without its memory.
    pub async fn restart(&mut self) {
        self.child = spawn((self.port, self.tls_port), self.directory.path()).unwrap();
        self.ready().await;
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    async fn ready(&self) {
        let client = redis::Client::open(("127.0.0.1", self.port)).unwrap();
        eventually("redis answers", async || {
            let connection = client.get_multiplexed_async_connection();
            tokio::time::timeout(Duration::from_secs(1), connection).await.is_ok_and(|connection| connection.is_ok())
        })
        .await;
    }

    /// Number of answers that servers of [`Self::shared_by`] stored.
    pub async fn answers(&self) -> usize {
        self.keys().await.iter().filter(|key| key.starts_with(ANSWERS)).count()
    }

    /// Everything else that they stored, sorted.
    pub async fn other_keys(&self) -> Vec<String> {
        let mut keys = self.keys().await;
        keys.retain(|key| !key.starts_with(ANSWERS));
        keys.sort_unstable();
        keys
    }

    async fn keys(&self) -> Vec<String> {
        let mut connection = self.connection().await;
        let mut command = redis::cmd("KEYS");
        let keys = command.arg("*").query_async(&mut connection);
        tokio::time::timeout(PATIENCE, keys).await.unwrap().unwrap()
    }

    /// Puts these bytes in the place of every value.
    pub async fn overwrite_all(&self, bytes: &[u8]) {
        let mut connection = self.connection().await;
        for key in self.keys().await {
            let () = redis::cmd("SET").arg(key).arg(bytes).query_async(&mut connection).await.unwrap();
        }
    }

    /// Pretends that the task which ended first has a result of so many bytes.
    pub async fn inflate_first_ended(&self, bytes: usize) {
        let (ended, sum) = (format!("yolo:{{{SCOPE}}}:e"), format!("yolo:{{{SCOPE}}}:eb"));
        let mut connection = self.connection().await;
        let first: String = redis::cmd("LINDEX").arg(&ended).arg(0).query_async(&mut connection).await.unwrap();
        let (was, task) = first.split_once(' ').unwrap();
        let more = bytes - was.parse::<usize>().unwrap();
        let () = redis::pipe()
            .lset(&ended, 0, format!("{bytes} {task}"))
            .incr(&sum, more)
            .query_async(&mut connection)
            .await
            .unwrap();
    }

    /// Forgets what it holds of a task, as it does when the task is too old, or memory too short.
    pub async fn lose(&self, location: &str) {
        let id = location.rsplit('/').next().unwrap();
        let mut command = redis::cmd("DEL");
        let command = command.arg(format!("yolo:{{{SCOPE}}}:t:{id}"));
        assert_eq!(command.query_async::<usize>(&mut self.connection().await).await.unwrap(), 1);
    }

    /// Sum of the bytes that unfinished tasks hold.
    pub async fn bytes_unfinished(&self) -> usize {
        let mut command = redis::cmd("GET");
        let command = command.arg(format!("yolo:{{{SCOPE}}}:b"));
        command.query_async(&mut self.connection().await).await.unwrap()
    }

    /// Number of servers that the store holds for takers of tasks.
    pub async fn consumers(&self) -> usize {
        let mut connection = self.connection().await;
        let mut command = redis::cmd("XINFO");
        let command = command.arg("CONSUMERS").arg(format!("yolo:{{{SCOPE}}}:q")).arg("servers");
        command.query_async::<Vec<redis::Value>>(&mut connection).await.unwrap().len()
    }

    async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(("127.0.0.1", self.port)).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn((port, tls_port): (u16, u16), directory: &Path) -> std::io::Result<Child> {
    Command::new("redis-server")
        .current_dir(directory)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--tls-port", &tls_port.to_string(), "--tls-auth-clients", "no"])
        .args(["--tls-cert-file", "certificate", "--tls-key-file", "key"])
        .stdout(Stdio::null())
        .spawn()
}
