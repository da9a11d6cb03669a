//! TLS contexts, in and out. Certificates never stand here: they come by name over SDS.

use std::collections::BTreeSet;

use api::crd::destination_rule::{ClientTlsMode, ClientTlsSettings};
use api::crd::gateway::{ServerTlsMode, ServerTlsSettings, TlsProtocol};
use api::xds::PEER_EXCHANGE;
use api::xds::core::{DataSource, TransportSocket, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
    SdsSecretConfig, SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
    certificate_validation_context::TrustChainVerification,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol as Version,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::wire::{ads, agent, some_bool, transport_socket};
use crate::scope::secret_name;

const SOCKET: &str = "envoy.transport_sockets.tls";

/// Server side of the mesh's mutual TLS: peers of the trust domain only. `exchange`: the chain reads the peer's metadata in
/// front of its bytes. It must not be negotiated otherwise: the application would get them.
pub(super) fn mutual_server(trust_domains: &[&str], exchange: bool) -> TransportSocket {
    let mut alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
    if exchange {
        alpn.insert(0, PEER_EXCHANGE.into());
    }
    let peers = trust_domains.iter().map(|domain| uri(MatchPattern::Prefix(format!("spiffe://{domain}/")))).collect();
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext { tls_params: Some(versions()), alpn_protocols: alpn, ..own(peers) }),
        require_client_certificate: some_bool(true),
        ..DownstreamTlsContext::default()
    };
    transport_socket(SOCKET, &context)
}

/// Client side of the mesh's mutual TLS. `exchange`: the cluster tells our metadata in front of the bytes, and reads the peer's.
pub(super) fn mutual_client(sni: &str, names: &BTreeSet<String>, http2: bool, exchange: bool) -> TransportSocket {
    let alpn: &[&str] = match (http2, exchange) {
        (true, _) => &["istio", "h2"],
        (false, true) => &[PEER_EXCHANGE, "istio"],
        (false, false) => &["istio"],
    };
    let peers = names.iter().map(|name| uri(MatchPattern::Exact(name.clone()))).collect();
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(versions()),
            alpn_protocols: alpn.iter().map(|name| (*name).to_owned()).collect(),
            ..own(peers)
        }),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    };
    transport_socket(SOCKET, &context)
}

/// Client side of the mesh's mutual TLS for a gRPC client without a proxy: certificate and authorities are those that its
/// bootstrap calls `default` (gRFC A29).
pub(super) fn from_provider(sni: &str, names: &BTreeSet<String>) -> TransportSocket {
    let instance = |certificate: &str| CertificateProviderPluginInstance {
        instance_name: "default".to_owned(),
        certificate_name: certificate.to_owned(),
    };
    // gRPC reads the older field, which does not say of which kind a name is.
    let peers = names.iter().filter_map(|name| uri(MatchPattern::Exact(name.clone())).matcher);
    #[allow(deprecated)]
    let validation = CertificateValidationContext {
        ca_certificate_provider_instance: Some(instance("ROOTCA")),
        match_subject_alt_names: peers.collect(),
        ..CertificateValidationContext::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(instance("default")),
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..CommonTlsContext::default()
        }),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    };
    transport_socket(SOCKET, &context)
}

/// Client side as a DestinationRule says (SIMPLE, MUTUAL).
pub(super) fn client(settings: &ClientTlsSettings, host: &str, http2: bool) -> Option<TransportSocket> {
    let names: Vec<SubjectAltNameMatcher> = settings
        .subject_alt_names
        .iter()
        .flat_map(|name| [SanType::Dns, SanType::Uri].map(|kind| san(kind, MatchPattern::Exact(name.clone()))))
        .collect();
    let insecure = settings.insecure_skip_verify.unwrap_or(false);
    let mut common = CommonTlsContext { tls_params: Some(versions()), ..CommonTlsContext::default() };
    if http2 {
        common.alpn_protocols = vec!["h2".into()];
    }
    let mut validation = CertificateValidationContext {
        match_typed_subject_alt_names: names,
        ..CertificateValidationContext::default()
    };
    if insecure {
        validation = CertificateValidationContext {
            trust_chain_verification: TrustChainVerification::AcceptUntrusted as i32,
            ..CertificateValidationContext::default()
        };
    }
    if !settings.credential_name.is_empty() {
        let name = format!("kubernetes://{}", settings.credential_name);
        if settings.mode == ClientTlsMode::Mutual {
            common.tls_certificate_sds_secret_configs = vec![SdsSecretConfig { name: name.clone(), sds_config: ads() }];
        }
        common.validation_context_type =
            Some(combined(validation, SdsSecretConfig { name: format!("{name}-cacert"), sds_config: ads() }));
    } else {
        if settings.mode == ClientTlsMode::Mutual {
            common.tls_certificate_sds_secret_configs =
                vec![certificate_file(&settings.client_certificate, &settings.private_key)];
        }
        common.validation_context_type = Some(if insecure {
            ValidationContextType::ValidationContext(validation)
        } else {
            if !settings.ca_crl.is_empty() {
                validation.crl = Some(DataSource {
                    specifier: Some(Specifier::Filename(settings.ca_crl.clone())),
                    ..DataSource::default()
                });
            }
            combined(validation, authorities_file(&settings.ca_certificates))
        });
    }
    let sni = if settings.sni.is_empty() && !host.starts_with('*') { host } else { &settings.sni };
    Some(transport_socket(
        SOCKET,
        &UpstreamTlsContext { common_tls_context: Some(common), sni: sni.to_owned(), ..UpstreamTlsContext::default() },
    ))
}

/// Server side of a gateway.
pub(super) fn server(settings: &ServerTlsSettings, trust_domains: &[&str], http: bool) -> Option<TransportSocket> {
    if settings.mode == ServerTlsMode::IstioMutual {
        return Some(mutual_server(trust_domains, false));
    }
    let mut common = CommonTlsContext { tls_params: Some(parameters(settings)), ..CommonTlsContext::default() };
    if http {
        common.alpn_protocols = vec!["h2".into(), "http/1.1".into()];
    }
    let credentials: Vec<&String> =
        settings.credential_names.iter().chain([&settings.credential_name]).filter(|name| !name.is_empty()).collect();
    let asks = matches!(settings.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    common.tls_certificate_sds_secret_configs =
        credentials.iter().map(|name| SdsSecretConfig { name: secret_name(name), sds_config: ads() }).collect();
    if credentials.is_empty() {
        let files = settings.tls_certificates.iter().map(|one| (&one.server_certificate, &one.private_key));
        let files = files.chain([(&settings.server_certificate, &settings.private_key)]);
        common.tls_certificate_sds_secret_configs =
            files.filter(|(chain, _)| !chain.is_empty()).map(|(chain, key)| certificate_file(chain, key)).collect();
    }
    if asks {
        let names = settings
            .subject_alt_names
            .iter()
            .flat_map(|name| [SanType::Dns, SanType::Uri].map(|kind| san(kind, MatchPattern::Exact(name.clone()))));
        let validation = CertificateValidationContext {
            match_typed_subject_alt_names: names.collect(),
            verify_certificate_spki: settings.verify_certificate_spki.clone(),
            verify_certificate_hash: settings.verify_certificate_hash.clone(),
            ..CertificateValidationContext::default()
        };
        let authorities = match (settings.ca_cert_credential_name.as_str(), credentials.first()) {
            ("", None) => authorities_file(&settings.ca_certificates),
            ("", Some(name)) => SdsSecretConfig { name: format!("{}-cacert", secret_name(name)), sds_config: ads() },
            (name, _) => SdsSecretConfig { name: secret_name(name), sds_config: ads() },
        };
        common.validation_context_type = Some(combined(validation, authorities));
    }
    let context = DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: some_bool(settings.mode == ServerTlsMode::Mutual),
        ..DownstreamTlsContext::default()
    };
    Some(transport_socket(SOCKET, &context))
}

/// The workload's own certificate and the mesh's authorities, both from the agent.
fn own(peers: Vec<SubjectAltNameMatcher>) -> CommonTlsContext {
    let validation = CertificateValidationContext {
        match_typed_subject_alt_names: peers,
        ..CertificateValidationContext::default()
    };
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![SdsSecretConfig { name: "default".into(), sds_config: agent() }],
        validation_context_type: Some(combined(
            validation,
            SdsSecretConfig { name: "ROOTCA".into(), sds_config: agent() },
        )),
        ..CommonTlsContext::default()
    }
}

/// A certificate and its key in files of the proxy's machine: its agent serves them under Istio's name for them.
fn certificate_file(chain: &str, key: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: format!("file-cert:{chain}~{key}"), sds_config: agent() }
}

/// Authorities in a file of the proxy's machine; without one, those of its system.
fn authorities_file(path: &str) -> SdsSecretConfig {
    let path = if path.is_empty() { "system" } else { path };
    SdsSecretConfig { name: format!("file-root:{path}"), sds_config: agent() }
}

fn combined(validation: CertificateValidationContext, authorities: SdsSecretConfig) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(validation),
        validation_context_sds_secret_config: Some(authorities),
        ..CombinedCertificateValidationContext::default()
    })
}

fn uri(pattern: MatchPattern) -> SubjectAltNameMatcher {
    san(SanType::Uri, pattern)
}

fn san(kind: SanType, pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: kind as i32,
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }),
        ..SubjectAltNameMatcher::default()
    }
}

/// Istio's: 1.2 and 1.3, forward secrecy first.
fn versions() -> TlsParameters {
    TlsParameters {
        tls_minimum_protocol_version: Version::TlSv12 as i32,
        tls_maximum_protocol_version: Version::TlSv13 as i32,
        cipher_suites: SUITES.iter().map(|name| (*name).to_owned()).collect(),
        ..TlsParameters::default()
    }
}

const SUITES: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

fn parameters(settings: &ServerTlsSettings) -> TlsParameters {
    let version = |written: Option<TlsProtocol>, default: Version| match written {
        None => default,
        Some(TlsProtocol::Auto) => Version::TlsAuto,
        Some(TlsProtocol::V1_0) => Version::TlSv10,
        Some(TlsProtocol::V1_1) => Version::TlSv11,
        Some(TlsProtocol::V1_2) => Version::TlSv12,
        Some(TlsProtocol::V1_3) => Version::TlSv13,
    };
    TlsParameters {
        tls_minimum_protocol_version: version(settings.min_protocol_version, Version::TlSv12) as i32,
        tls_maximum_protocol_version: version(settings.max_protocol_version, Version::TlSv13) as i32,
        cipher_suites: if settings.cipher_suites.is_empty() {
            SUITES.iter().map(|name| (*name).to_owned()).collect()
        } else {
            settings.cipher_suites.clone()
        },
        ecdh_curves: settings.ecdh_curves.clone(),
        ..TlsParameters::default()
    }
}
