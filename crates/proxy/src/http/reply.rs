//! Local answers, as HTTP or as gRPC.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};

use super::body::ResponseBody;
use super::names;
use super::story::Story;
use crate::failure::grpc_status_of;
use crate::filter::Reply;

/// Turns a reply into an answer. gRPC callers get status 200 and the status in headers (gRPC over HTTP/2, "Trailers-Only").
pub fn respond(reply: Reply, mut story: Box<Story>) -> Response<ResponseBody> {
    story.failure = story.failure.or(reply.failure);
    let mut response = Response::new(ResponseBody::empty());
    *response.headers_mut() = reply.headers;
    let status = if reply.status == 0 { 503 } else { reply.status };
    if story.grpc && (reply.failure.is_some() || reply.grpc_status.is_some()) {
        let grpc = reply.grpc_status.unwrap_or_else(|| u32::from(grpc_status_of(status)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(names::GRPC_STATUS.clone(), HeaderValue::from(grpc));
        if !reply.body.is_empty()
            && let Ok(message) = HeaderValue::from_maybe_shared(reply.body)
        {
            headers.insert(names::GRPC_MESSAGE.clone(), message);
        }
        story.status = 200;
        story.grpc_status = Some(grpc);
        *response.body_mut() = ResponseBody::local(bytes::Bytes::new(), story);
        return response;
    }
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    story.status = status;
    if !reply.body.is_empty() {
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
        if !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
    }
    story.sent = 0;
    *response.body_mut() = ResponseBody::local(reply.body, story);
    response
}
