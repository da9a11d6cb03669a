//! `istio.v1.auth.IstioCertificateService`.

use std::sync::Arc;

use api::xds::ca::istio_certificate_service_server::IstioCertificateService;
use api::xds::ca::{IstioCertificateRequest, IstioCertificateResponse};
use time::{Duration, OffsetDateTime};
use tonic::{Request, Response, Status};

use super::issue;
use super::root::Root;
use crate::authn::Authenticator;
use crate::telemetry::Metrics;

/// The service.
pub struct CertificateService {
    /// Signs.
    pub root: Arc<Root>,
    /// Tells who asks.
    pub authenticator: Arc<Authenticator>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csr_count.inc();
        let caller = self.authenticator.caller(&request).await.and_then(|caller| {
            caller.ok_or_else(|| {
                Status::unauthenticated(
                    "a certificate is signed only for a proven identity: send a client certificate or a token",
                )
            })
        });
        let caller = caller.inspect_err(|status| {
            self.metrics.authentication_failures.inc();
            tracing::warn!(reason = status.message(), "a request for a certificate was refused");
        })?;
        let request = request.into_inner();
        if request.metadata.is_some_and(|metadata| metadata.fields.contains_key("ImpersonatedIdentity")) {
            return Err(Status::permission_denied("certificates for another identity are not signed"));
        }
        let wished = Duration::seconds(request.validity_duration);
        match issue::sign(&self.root, &request.csr, &caller, wished, OffsetDateTime::now_utc()) {
            Ok(cert_chain) => {
                self.metrics.issued.inc();
                tracing::info!(%caller, "signed a certificate");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(error) => {
                self.metrics.sign_errors.inc();
                Err(Status::invalid_argument(format!("{error:#}")))
            }
        }
    }
}
