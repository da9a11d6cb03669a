//! Tokens of service accounts: the API server is asked (TokenReview) for which pod's account a token was made, and whether for
//! this mesh.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use tonic::Status;

/// Whom tokens must be for, as the sidecar injector has them made (Istio `TOKEN_AUDIENCES`).
pub const AUDIENCE: &str = "istio-ca";

/// Asks the API server.
pub struct Reviewer {
    reviews: Api<TokenReview>,
}

impl Reviewer {
    /// One that asks with this client.
    pub fn new(client: Client) -> Self {
        Self { reviews: Api::all(client) }
    }

    /// Namespace and name of the service account that a token is of.
    ///
    /// # Errors
    /// Unauthenticated: the token is not good, not for this mesh, or not of a service account. Unavailable: the API server
    /// cannot be asked now.
    pub async fn service_account(&self, token: &str) -> Result<(String, String), Status> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = self.reviews.create(&PostParams::default(), &review).await.map_err(|error| match error {
            Error::Api(status) => Status::internal(format!("the API server refuses to review tokens: {status}")),
            error => Status::unavailable(format!("the API server cannot be asked about a token now: {error}")),
        })?;
        judge(review.status.unwrap_or_default())
    }
}

fn judge(status: TokenReviewStatus) -> Result<(String, String), Status> {
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "it is not a token of this cluster".to_owned());
        return Err(Status::unauthenticated(format!("the token is refused: {why}")));
    }
    // An API server that does not know audiences leaves them out, and has not checked them.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return Err(Status::unauthenticated(format!("the token is not for the audience {AUDIENCE:?}")));
    }
    let user = status.user.and_then(|user| user.username).unwrap_or_default();
    let mut parts = user.strip_prefix("system:serviceaccount:").unwrap_or_default().split(':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(account), None) if !namespace.is_empty() && !account.is_empty() => {
            Ok((namespace.to_owned(), account.to_owned()))
        }
        _ => Err(Status::unauthenticated(format!("the token is of {user:?}, which is no service account"))),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn status(authenticated: bool, audience: &str, user: &str) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(authenticated),
            audiences: Some(vec![audience.to_owned()]),
            user: Some(UserInfo { username: Some(user.to_owned()), ..UserInfo::default() }),
            ..TokenReviewStatus::default()
        }
    }

    #[test]
    fn only_tokens_of_service_accounts_made_for_the_mesh_are_believed() {
        let good = judge(status(true, AUDIENCE, "system:serviceaccount:shop:user")).unwrap();
        assert_eq!(good, ("shop".to_owned(), "user".to_owned()));
        for bad in [
            status(false, AUDIENCE, "system:serviceaccount:shop:user"),
            status(true, "https://kubernetes.default.svc", "system:serviceaccount:shop:user"),
            status(true, AUDIENCE, "system:node:node-1"),
            status(true, AUDIENCE, "system:serviceaccount:shop"),
            status(true, AUDIENCE, "system:serviceaccount::user"),
            status(true, AUDIENCE, "admin"),
            TokenReviewStatus { audiences: None, ..status(true, "", "system:serviceaccount:shop:user") },
        ] {
            assert_eq!(judge(bad.clone()).unwrap_err().code(), tonic::Code::Unauthenticated, "{bad:?}");
        }
    }
}
