//! Encrypted connections: rustls with the Graviola provider, which needs nothing but Rust to build.

use anyhow::{Context, Result, anyhow, bail};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What takes encrypted connections in, with the certificates and the key of these files, in PEM.
///
/// # Errors
/// When a file is not what it should be, or the processor has no implementation.
pub fn acceptor(certificates: &Path, key: &Path) -> Result<TlsAcceptor> {
    let provider = crate::hub::tls::provider()?;
    let name = || certificates.display().to_string();
    let chain = CertificateDer::pem_file_iter(certificates).map_err(|error| anyhow!("{error}"));
    let chain: Result<Vec<CertificateDer<'static>>> =
        chain.with_context(name)?.map(|certificate| Ok(certificate?)).collect();
    let chain = chain.with_context(name)?;
    if chain.is_empty() {
        bail!("{}: no certificate is in it", name());
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| anyhow!("{error}"));
    let private = private.with_context(|| key.display().to_string())?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| format!("{} and {}", name(), key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
