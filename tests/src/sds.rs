//! The workload's own secrets for an Envoy, as Istio's agent serves them on its socket: a small SDS server.

use std::pin::Pin;
use std::sync::Arc;

use api::xds::ca::IstioCertificateRequest;
use api::xds::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use api::xds::{ResourceKind, pack};
use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use futures_util::{Stream, StreamExt};
use proxy::identity::{channel, csr};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use crate::ads::options;
use crate::control_plane::ControlPlane;

/// The secrets.
#[derive(Clone)]
struct Agent {
    secrets: Arc<Vec<Secret>>,
}

/// Has the identity certified and serves it. Answers where; the server ends with the task that started it.
pub async fn serve(control_plane: &ControlPlane, namespace: &str, account: &str) -> std::net::SocketAddr {
    let token = control_plane.path(&format!("token-{namespace}-{account}"));
    std::fs::write(&token, control_plane.token(namespace, account)).unwrap();
    let address = &control_plane.addresses.secure_grpc;
    let options = options(address, false, Some(control_plane.root_cert()), Some(token));
    let (channel, token) = channel::connect(&options, address, false, None).await.unwrap();
    let request = csr::create().unwrap();
    let mut call = Request::new(IstioCertificateRequest { csr: request.pem, ..IstioCertificateRequest::default() });
    call.metadata_mut().insert("authorization", format!("Bearer {}", token.unwrap()).parse().unwrap());
    let chain =
        IstioCertificateServiceClient::new(channel).create_certificate(call).await.unwrap().into_inner().cert_chain;
    let (root, leaf) = chain.split_last().unwrap();
    let inline =
        |bytes: Vec<u8>| Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..DataSource::default() });
    let key = pem("PRIVATE KEY", request.key.secret_der());
    let certificate = TlsCertificate {
        certificate_chain: inline(leaf.concat().into_bytes()),
        private_key: inline(key.into_bytes()),
        ..TlsCertificate::default()
    };
    let roots = CertificateValidationContext {
        trusted_ca: inline(root.clone().into_bytes()),
        ..CertificateValidationContext::default()
    };
    let secrets = vec![
        Secret { name: "default".into(), r#type: Some(Type::TlsCertificate(certificate)) },
        Secret { name: "ROOTCA".into(), r#type: Some(Type::ValidationContext(roots)) },
    ];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = SecretDiscoveryServiceServer::new(Agent { secrets: Arc::new(secrets) });
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    address
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        base64::engine::general_purpose::STANDARD.encode(der)
    )
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Agent {
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Responses<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("the planner asks for secrets in state of the world"))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let secrets = self.secrets.clone();
        let asked = request.into_inner().filter_map(move |message| {
            let secrets = secrets.clone();
            async move {
                let message = message.ok().filter(|message| message.response_nonce.is_empty())?;
                let wanted = secrets.iter().filter(|secret| message.resource_names.contains(&secret.name));
                Some(Ok(DiscoveryResponse {
                    version_info: "1".into(),
                    nonce: "1".into(),
                    type_url: ResourceKind::Secret.type_url().into(),
                    resources: wanted.map(pack).collect(),
                    ..DiscoveryResponse::default()
                }))
            }
        });
        Ok(Response::new(Box::pin(asked)))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are streamed"))
    }
}
