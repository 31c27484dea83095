//! Certificates, keys and kubeconfigs of one cluster: one authority, all keys ECDSA P-256.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::{ClusterError, Instance};

/// Names and addresses under which the API server is called: by pods, by the node and by this machine.
const SERVER_NAMES: [&str; 8] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "127.0.0.1",
    "10.96.0.1",
    "10.244.0.1",
];

/// Client certificates: file name, user, group. The names are those that Kubernetes' built-in roles are bound to.
const CLIENTS: [(&str, &str, Option<&str>); 6] = [
    ("admin", "yolo-admin", Some("system:masters")),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kubelet", "system:node:node-1", Some("system:nodes")),
    ("kube-proxy", "system:kube-proxy", None),
    ("apiserver-kubelet", "kube-apiserver-kubelet-client", Some("system:masters")),
];

/// Writes the authority, the API server's certificate, the service-account key pair, and a certificate and a
/// kubeconfig `<client>.kubeconfig` for each client of `server` (`https://address:port`).
pub(crate) fn create(instance: &Instance, server: &str) -> Result<(), ClusterError> {
    let authority = authority()?;
    instance.write("pki/ca.crt", authority.pem())?;
    instance.write("pki/ca.key", authority.key().serialize_pem())?;

    let service_accounts = KeyPair::generate()?;
    instance.write("pki/service-accounts.key", service_accounts.serialize_pem())?;
    instance.write("pki/service-accounts.pub", service_accounts.public_key_pem())?;

    let mut params = CertificateParams::new(SERVER_NAMES.map(String::from))?;
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    certify(instance, "apiserver", &mut params, &authority)?;

    for (file, user, group) in CLIENTS {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        certify(instance, file, &mut params, &authority)?;
        write_kubeconfig(instance, file, server)?;
    }
    Ok(())
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, ClusterError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "yolo-cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// Signs `params` and writes `pki/<file>.crt` and `pki/<file>.key`.
fn certify(
    instance: &Instance,
    file: &str,
    params: &mut CertificateParams,
    authority: &CertifiedIssuer<'_, KeyPair>,
) -> Result<(), ClusterError> {
    let key = KeyPair::generate()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    instance.write(&format!("pki/{file}.crt"), params.signed_by(&key, authority)?.pem())?;
    instance.write(&format!("pki/{file}.key"), key.serialize_pem()).map(drop)
}

/// Writes `<client>.kubeconfig`. JSON is YAML; the certificates are named by path, so the file holds no secret.
fn write_kubeconfig(instance: &Instance, client: &str, server: &str) -> Result<(), ClusterError> {
    let pki = |file: &str| instance.path("pki").join(file);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "yolo",
        "contexts": [{"name": "yolo", "context": {"cluster": "yolo", "user": client}}],
        "clusters": [{"name": "yolo", "cluster": {"server": server, "certificate-authority": pki("ca.crt")}}],
        "users": [{"name": client, "user": {
            "client-certificate": pki(&format!("{client}.crt")),
            "client-key": pki(&format!("{client}.key")),
        }}],
    });
    instance.write(&format!("{client}.kubeconfig"), format!("{config:#}")).map(drop)
}
