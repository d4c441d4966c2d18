//! Who may ask: certificates of an authority of the double's own, and bearer tokens.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use axum::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use serde_json::json;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};

/// A client's certificate with its key, as PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// The authority, and who is known.
pub struct Access {
    authority: CertifiedIssuer<'static, KeyPair>,
    /// Users, by the text behind `Bearer`.
    tokens: Mutex<HashMap<String, String>>,
    /// Users, by their certificates.
    certificates: Mutex<HashMap<Box<[u8]>, String>>,
    /// Whether everybody may ask, without saying who he is.
    open: bool,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Access {
    /// An authority that nobody is known to yet. `open`: everybody may ask, without saying who he is.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(open: bool) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { authority, tokens: Mutex::default(), certificates: Mutex::default(), open })
    }

    /// The authority's certificate, as PEM: `ca.crt`.
    pub fn authority(&self) -> String {
        self.authority.pem()
    }

    /// From now on whoever has `token` is `user`.
    pub fn allow_token(&self, token: &str, user: &str) {
        locked(&self.tokens).insert(token.to_owned(), user.to_owned());
    }

    /// Nobody is known by this token any more.
    pub fn withdraw_token(&self, token: &str) {
        locked(&self.tokens).remove(token);
    }

    /// A certificate for `user`, known from now on.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn issue(&self, user: &str) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        locked(&self.certificates).insert(certificate.der().to_vec().into(), user.to_owned());
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Nobody is known by a certificate any more.
    pub fn withdraw_certificates(&self) {
        locked(&self.certificates).clear();
    }

    /// Who asks.
    pub(super) fn user(
        &self,
        certificate: Option<&[u8]>,
        authorization: Option<&HeaderValue>,
    ) -> Option<String> {
        if let Some(user) = certificate.and_then(|der| locked(&self.certificates).get(der).cloned()) {
            return Some(user);
        }
        let token =
            authorization.and_then(|value| value.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
        if let Some(token) = token {
            return locked(&self.tokens).get(token.trim()).cloned();
        }
        self.open.then(|| "system:anonymous".to_owned())
    }

    /// TLS for a server at these addresses.
    pub(super) fn acceptor(&self, addresses: &[IpAddr]) -> Result<TlsAcceptor> {
        let mut names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        names.push("kubernetes.default.svc".to_owned());
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        let chain = vec![certificate.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Asked(Arc::clone(&provider)));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .context("the server's certificate")?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// What a service account's directory has, written into `directory`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_service_account(&self, directory: &Path, token: &str) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("ca.crt"), self.authority())?;
        std::fs::write(directory.join("token"), token)?;
        std::fs::write(directory.join("namespace"), "kube-system")?;
        Ok(())
    }

    /// A kubeconfig, as YAML, for the server at `url`, with what `user` has (`{"token": ..}`).
    pub fn kubeconfig(&self, url: &str, user: &serde_json::Value) -> String {
        let authority = STANDARD.encode(self.authority());
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "default", "preferences": {},
            "clusters": [{
                "name": "default",
                "cluster": {"server": url, "certificate-authority-data": authority},
            }],
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
            "users": [{"name": "default", "user": user}],
        })
        .to_string()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks for a certificate and takes any whose key the client has: who is not known is told so by an answer, not by the
/// end of the handshake.
#[derive(Debug)]
struct Asked(Arc<CryptoProvider>);

impl ClientCertVerifier for Asked {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
