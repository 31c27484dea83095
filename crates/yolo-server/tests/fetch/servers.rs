//! Servers that hold models, started for one test each. `make packages model` brings them.

use std::fmt::Write;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::program::eventually;

/// User and password of the servers that ask for them.
pub const USER: &str = "reader";
pub const PASSWORD: &str = "secret";
/// bcrypt of [`PASSWORD`], the only form that docker-registry takes.
const PASSWORD_BCRYPT: &str = "$2b$04$4H/5fS0HQJHm14mwUYqQDeN9a2LM3ZgHq1tdH7tP75UOUkv/94yQ6";

/// A running server; dropped, it ends.
pub struct Server {
    pub address: SocketAddr,
    /// Its certificate's authority, PEM; empty without TLS.
    pub authority: String,
    folder: TempDir,
    child: Child,
}

impl Server {
    /// nginx with `files` at `/models/`; the same at `/no-ranges/` without ranges and at `/private/` behind a password.
    pub fn nginx(files: &[(&str, &[u8])]) -> Self {
        let (folder, address, authority) = secured();
        let www = folder.path().join("www");
        fs::create_dir(&www).unwrap();
        for (name, bytes) in files {
            fs::write(www.join(name), bytes).unwrap();
        }
        fs::write(folder.path().join("users"), format!("{USER}:{{PLAIN}}{PASSWORD}\n")).unwrap();
        let at = folder.path().display();
        let mut temporary = String::new();
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(temporary, "{kind}_temp_path {at}/{kind};").unwrap();
        }
        let locations = format!(
            "location /models/ {{ alias {at}/www/; }}
             location /no-ranges/ {{ alias {at}/www/; max_ranges 0; }}
             location /private/ {{ alias {at}/www/; auth_basic models; auth_basic_user_file {at}/users; }}"
        );
        let configuration = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; events {{}}
             http {{
                 {temporary}
                 log_format ranges '$status $http_range';
                 access_log {at}/access.log ranges;
                 server {{
                     listen {address} ssl;
                     ssl_certificate {at}/server.crt;
                     ssl_certificate_key {at}/server.key;
                     {locations}
                 }}
             }}"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder.path()).arg("-c").arg(&file).arg("-e").arg(folder.path().join("error.log"));
        Self::start(folder, address, authority, command)
    }

    /// docker-registry over TLS, behind [`USER`] and [`PASSWORD`].
    pub fn registry() -> Self {
        let (folder, address, authority) = secured();
        let at = folder.path().display();
        fs::write(folder.path().join("users"), format!("{USER}:{PASSWORD_BCRYPT}\n")).unwrap();
        let configuration = format!(
            "version: 0.1
storage: {{filesystem: {{rootdirectory: {at}/storage}}}}
http: {{addr: '{address}', tls: {{certificate: {at}/server.crt, key: {at}/server.key}}}}
auth: {{htpasswd: {{realm: models, path: {at}/users}}}}
"
        );
        let file = folder.path().join("registry.yml");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file);
        Self::start(folder, address, authority, command)
    }

    /// moto's S3 with the empty bucket `models`.
    pub fn s3() -> Self {
        let address = free_address();
        let mut command = Command::new(cached("venv/bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let server = Self::start(tempfile::tempdir().unwrap(), address, String::new(), command);
        server.request("PUT /models", b"");
        server
    }

    fn start(folder: TempDir, address: SocketAddr, authority: String, mut command: Command) -> Self {
        let program = command.get_program().display().to_string();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        // Debian keeps servers where only root's shell looks.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        command
            .env("PATH", path)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}; make packages model brings it"));
        let mut server = Self { address, authority, folder, child };
        eventually(&format!("{program} listens"), || {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "{program} {ended:?}: {}", server.log("log"));
            TcpStream::connect(address).is_ok()
        });
        server
    }

    /// What nginx serves under a name.
    pub fn served(&self, name: &str) -> PathBuf {
        self.folder.path().join("www").join(name)
    }

    /// A file that the server writes.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// Sends a request over plain HTTP and expects success.
    pub fn request(&self, line: &str, body: &[u8]) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = format!("{line} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n", self.address, body.len());
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.split(' ').nth(1), Some("200"), "{line}: {answer}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// A program that `make model` has put into the cache.
fn cached(path: &str) -> PathBuf {
    let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let cache = folder("YOLO_CACHE").or_else(|| folder("XDG_CACHE_HOME").map(|path| path.join("yolo-operator")));
    cache.or_else(|| folder("HOME").map(|home| home.join(".cache/yolo-operator"))).unwrap().join(path)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A folder with `server.crt` and `server.key` for an address that is free, and the PEM of an authority of its own.
fn secured() -> (TempDir, SocketAddr, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "models of a test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    write(folder.path(), "server.crt", &server.pem());
    write(folder.path(), "server.key", &key.serialize_pem());
    (folder, free_address(), authority.pem())
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}
