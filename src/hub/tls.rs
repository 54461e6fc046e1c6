//! Encrypted connections: rustls with the Graviola provider, which needs nothing but Rust to build.

use anyhow::{Result, bail};
use tokio_rustls::rustls::crypto::CryptoProvider;
use ureq::tls::TlsConfig;

/// The settings for `https://`.
///
/// # Errors
/// On a processor that Graviola does not support.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub fn config() -> Result<TlsConfig> {
    use std::sync::Arc;
    use ureq::tls::{Certificate, RootCerts};

    let provider = provider()?;
    // The system's certificates, among which a company's own may be; Mozilla's where the system has none.
    let system = rustls_native_certs::load_native_certs().certs;
    let system = system.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
    let system: Vec<Certificate<'static>> = system.collect();
    let roots = if system.is_empty() { RootCerts::WebPki } else { RootCerts::from(system) };
    Ok(TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(provider))
        .root_certs(roots)
        .build())
}

/// The settings for `https://`.
///
/// # Errors
/// Always: there is no implementation for this processor that builds without a C compiler.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn config() -> Result<TlsConfig> {
    bail!("there is no https:// on this processor: HF_ENDPOINT may name a mirror with http://")
}

/// The implementation of the algorithms, for connections in either direction.
///
/// # Errors
/// On a processor that Graviola does not support.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub fn provider() -> Result<CryptoProvider> {
    let missing = missing_instructions();
    if !missing.is_empty() {
        bail!("https:// needs instructions that this processor does not have: {missing:?}");
    }
    Ok(rustls_graviola::default_provider())
}

/// The implementation of the algorithms.
///
/// # Errors
/// Always, as with [`config`].
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn provider() -> Result<CryptoProvider> {
    bail!("there is no https:// on this processor")
}

/// The instructions among those that Graviola requires which are not there.
#[cfg(target_arch = "x86_64")]
fn missing_instructions() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let needed = [
        ("aes", has!("aes")),
        ("ssse3", has!("ssse3")),
        ("pclmulqdq", has!("pclmulqdq")),
        ("avx", has!("avx")),
        ("avx2", has!("avx2")),
        ("bmi1", has!("bmi1")),
        ("bmi2", has!("bmi2")),
        ("adx", has!("adx")),
    ];
    needed.into_iter().filter(|(_, has)| !has).map(|(name, _)| name).collect()
}

/// The instructions among those that Graviola requires which are not there.
#[cfg(target_arch = "aarch64")]
fn missing_instructions() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    let needed = [
        ("aes", has!("aes")),
        ("sha2", has!("sha2")),
        ("pmull", has!("pmull")),
        ("neon", has!("neon")),
    ];
    needed.into_iter().filter(|(_, has)| !has).map(|(name, _)| name).collect()
}
