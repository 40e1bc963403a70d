//! The body of a call's response: messages in chunks, and the status at the end.
//!
//! In: a stream of [`super::stream`]. Out: an HTTP body that tonic's server sends, asked for its next chunk
//! when the client can take it. Made by [`super::service`].

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Body, Frame};
use tonic::Status;
use tonic::codegen::http;

use crate::push::Pieces;

/// The messages of a call.
type Responses = Pin<Box<dyn Stream<Item = Result<Pieces, Status>> + Send>>;

/// The body.
pub(super) struct ResponseBody {
    responses: Responses,
    /// What is being sent.
    current: Pieces,
    ended: bool,
}

impl ResponseBody {
    pub(super) fn new(responses: Responses) -> Self {
        Self {
            responses,
            current: Pieces::default(),
            ended: false,
        }
    }

    /// The response that it belongs to.
    pub(super) fn into_http(self) -> http::Response<tonic::body::Body> {
        let mut response = http::Response::new(tonic::body::Body::new(self));
        let grpc = http::HeaderValue::from_static("application/grpc");
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, grpc);
        response
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        if let Err(invalid) = status.add_header(&mut trailers) {
            // Its message has no place in a header: the code alone.
            trailers.clear();
            let code = i32::from(invalid.code());
            trailers.insert("grpc-status", code.into());
        }
        Frame::trailers(trailers)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        while !this.ended {
            if let Some(chunk) = this.current.next_chunk() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            let next = ready!(this.responses.as_mut().poll_next(cx));
            let pieces = next.map(|next| next.and_then(finish));
            match pieces {
                Some(Ok(pieces)) => this.current = pieces,
                Some(Err(status)) => return Poll::Ready(Some(Ok(this.end(&status)))),
                None => return Poll::Ready(Some(Ok(this.end(&Status::ok(""))))),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

fn finish(pieces: Pieces) -> Result<Pieces, Status> {
    let too_long = |_| Status::resource_exhausted("a response is longer than a message can be");
    pieces.finish().map_err(too_long)
}
