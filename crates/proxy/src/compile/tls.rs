//! TLS contexts.

use api::xds::metadata_exchange::MetadataExchange;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{DataSource, TransportSocket};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, UpstreamTlsContext,
};
use prost::Name;

use crate::leaf::text_match;
use crate::snapshot::tls_terms::{ClientTerms, SanKind, SanMatch, ServerTerms, Source};

/// Terms of an upstream transport socket; `None` for plaintext.
pub(crate) fn client_terms(socket: &TransportSocket) -> Result<Option<ClientTerms>, String> {
    let Some(any) = tls_config(socket)? else { return Ok(None) };
    let context: UpstreamTlsContext = api::xds::unpack(any)?;
    let common = context.common_tls_context.unwrap_or_default();
    let (roots, sans) = validation(&common)?;
    let mut certificates = certificates(&common)?;
    if certificates.len() > 1 {
        return Err("a client can show one certificate only".to_owned());
    }
    Ok(Some(ClientTerms {
        certificate: certificates.pop(),
        roots,
        sans,
        sni: context.sni,
        auto_host_sni: context.auto_host_sni,
        name_must_match: context.auto_sni_san_validation,
        mesh: common.alpn_protocols.iter().any(|protocol| protocol == "istio"),
        only_tls13: only_tls13(&common)?,
        alpn: common.alpn_protocols.clone(),
    }))
}

/// Terms of a downstream transport socket; `None` for plaintext.
pub(crate) fn server_terms(socket: &TransportSocket) -> Result<Option<ServerTerms>, String> {
    let Some(any) = tls_config(socket)? else { return Ok(None) };
    let context: DownstreamTlsContext = api::xds::unpack(any)?;
    let common = context.common_tls_context.unwrap_or_default();
    let (roots, sans) = validation(&common)?;
    let certificates = certificates(&common)?;
    let require_client_certificate = context.require_client_certificate.is_some_and(|required| required.value);
    if certificates.is_empty() {
        return Err("a TLS server needs a certificate".to_owned());
    }
    if context.require_sni.is_some_and(|required| required.value) || context.ocsp_staple_policy != 0 {
        return Err("require_sni and ocsp_staple_policy are not built".to_owned());
    }
    if require_client_certificate && roots.is_none() {
        return Err("client certificates are required, but nobody is trusted to sign them".to_owned());
    }
    Ok(Some(ServerTerms {
        certificates,
        roots,
        require_client_certificate,
        sans,
        only_tls13: only_tls13(&common)?,
        alpn: common.alpn_protocols.clone(),
    }))
}

/// What stands in front of the bytes must not be negotiated where nothing reads it: an application would get it.
pub(crate) fn without_exchange(alpn: &mut Vec<String>) {
    alpn.retain(|protocol| protocol != api::xds::PEER_EXCHANGE);
}

/// Whether a network filter is the one that exchanges metadata.
pub(crate) fn is_exchange(any: &api::xds::Any) -> Result<bool, String> {
    if any.type_url != MetadataExchange::type_url() {
        return Ok(false);
    }
    let config: MetadataExchange = api::xds::unpack(any)?;
    match config.protocol.as_str() {
        api::xds::PEER_EXCHANGE => Ok(true),
        other => {
            Err(format!("metadata is exchanged under the protocol {:?} only, not {other:?}", api::xds::PEER_EXCHANGE))
        }
    }
}

fn tls_config(socket: &TransportSocket) -> Result<Option<&api::xds::Any>, String> {
    let Some(ConfigType::TypedConfig(any)) = &socket.config_type else {
        return if socket.name.ends_with("raw_buffer") {
            Ok(None)
        } else {
            Err(format!("the transport socket {:?} has no configuration", socket.name))
        };
    };
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(None),
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
        | "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => Ok(Some(any)),
        other => Err(format!("the transport socket {other:?} is not known to this proxy")),
    }
}

fn only_tls13(common: &CommonTlsContext) -> Result<bool, String> {
    let Some(params) = &common.tls_params else { return Ok(false) };
    // TLS_AUTO, TLSv1_0 … TLSv1_3 are 0 … 4. Versions before 1.2 are never spoken.
    if (1..=2).contains(&params.tls_maximum_protocol_version) {
        return Err("TLS 1.0 and 1.1 are not spoken".to_owned());
    }
    Ok(params.tls_minimum_protocol_version == 4)
}

fn certificates(common: &CommonTlsContext) -> Result<Vec<Source>, String> {
    if common.tls_certificate_provider_instance.is_some() || common.custom_tls_certificate_selector.is_some() {
        return Err("certificate providers and selectors are not known".to_owned());
    }
    let mut sources: Vec<Source> =
        common.tls_certificate_sds_secret_configs.iter().map(|secret| Source::Named(secret.name.clone())).collect();
    for certificate in &common.tls_certificates {
        let (Some(chain), Some(key)) = (&certificate.certificate_chain, &certificate.private_key) else {
            return Err("a certificate needs a chain and a key".to_owned());
        };
        let mut pem = data(chain)?;
        pem.push(b'\n');
        pem.extend(data(key)?);
        sources.push(Source::Pem(pem));
    }
    Ok(sources)
}

fn validation(common: &CommonTlsContext) -> Result<(Option<Source>, Vec<SanMatch>), String> {
    match &common.validation_context_type {
        None => Ok((None, Vec::new())),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            Ok((Some(Source::Named(secret.name.clone())), Vec::new()))
        }
        Some(ValidationContextType::ValidationContext(context)) => checked(context),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let (roots, sans) = combined.default_validation_context.as_ref().map_or(Ok((None, Vec::new())), checked)?;
            let named =
                combined.validation_context_sds_secret_config.as_ref().map(|secret| Source::Named(secret.name.clone()));
            Ok((named.or(roots), sans))
        }
        Some(_) => Err("certificate providers are not known".to_owned()),
    }
}

fn checked(context: &CertificateValidationContext) -> Result<(Option<Source>, Vec<SanMatch>), String> {
    // What would widen trust if it were ignored is refused.
    if !context.verify_certificate_spki.is_empty()
        || !context.verify_certificate_hash.is_empty()
        || context.crl.is_some()
        || context.custom_validator_config.is_some()
        || context.require_signed_certificate_timestamp.is_some_and(|required| required.value)
        || context.max_verify_depth.is_some()
    {
        return Err("pinned certificates, revocation lists, signed timestamps, max_verify_depth and custom validators are not built".to_owned());
    }
    let roots = match (&context.trusted_ca, &context.system_root_certs) {
        (Some(source), _) => Some(Source::Pem(data(source)?)),
        (None, Some(_)) => Some(Source::System),
        (None, None) => None,
    };
    let mut sans = Vec::new();
    for matcher in &context.match_subject_alt_names {
        sans.push(SanMatch { kind: SanKind::Any, text: text_match(matcher)? });
    }
    for typed in &context.match_typed_subject_alt_names {
        let kind = match typed.san_type {
            2 => SanKind::Dns,
            3 => SanKind::Uri,
            other => return Err(format!("subject alternative names of type {other} are not looked at")),
        };
        let Some(matcher) = &typed.matcher else { return Err("a name matcher is empty".to_owned()) };
        sans.push(SanMatch { kind, text: text_match(matcher)? });
    }
    Ok((roots, sans))
}

/// The bytes of a data source. Files are read when a handshake needs them, not here: see [`Source`].
fn data(source: &DataSource) -> Result<Vec<u8>, String> {
    match &source.specifier {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::Filename(name)) => {
            Err(format!("certificates from files ({name:?}) come through the secret service, not from a TLS context"))
        }
        Some(Specifier::EnvironmentVariable(_)) | None => {
            Err("a certificate must be given in place or by a secret's name".to_owned())
        }
    }
}
