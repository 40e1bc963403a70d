//! Bookinfo, the sample application of the Istio articles, as one small server.
//!
//! `productpage` shows a book; it asks `details` for facts and `reviews` for opinions, and
//! `reviews` (v2 with black stars, v3 with red ones, v1 with none) asks `ratings`. The four know
//! nothing of a mesh: they resolve plain names, connect, and forward trace headers.

#![forbid(unsafe_code)]

mod details;
mod headers;
mod page;
mod productpage;
mod ratings;
mod reply;
mod reviews;
mod server;
mod upstream;

use std::net::SocketAddr;

use clap::{Parser, Subcommand};

/// The Bookinfo sample.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Address to serve at.
    #[arg(long, global = true, default_value = "[::]:9080")]
    listen: SocketAddr,
    #[command(subcommand)]
    service: Service,
}

#[derive(Debug, Subcommand)]
enum Service {
    /// The page and the public API.
    Productpage {
        /// Where the details service is called.
        #[arg(long, env = "DETAILS_URL", default_value = "http://details:9080")]
        details: String,
        /// Where the reviews service is called.
        #[arg(long, env = "REVIEWS_URL", default_value = "http://reviews:9080")]
        reviews: String,
        /// Where the ratings service is called for `/api/v1/products/<id>/ratings`.
        #[arg(long, env = "RATINGS_URL", default_value = "http://ratings:9080")]
        ratings: String,
    },
    /// Facts about the book.
    Details,
    /// Stars by reviewer.
    Ratings,
    /// Opinions, with stars from v2 on.
    Reviews {
        /// Which deployment of the service this is.
        #[arg(long, env = "SERVICE_VERSION", default_value = "v1")]
        version: reviews::Version,
        /// Where the ratings service is called.
        #[arg(long, env = "RATINGS_URL", default_value = "http://ratings:9080")]
        ratings: String,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.service {
        Service::Productpage {
            details,
            reviews,
            ratings,
        } => {
            let page = productpage::ProductPage::new(&details, &reviews, &ratings)?;
            server::serve(args.listen, page).await
        }
        Service::Details => server::serve(args.listen, details::Details).await,
        Service::Ratings => server::serve(args.listen, ratings::Ratings::default()).await,
        Service::Reviews { version, ratings } => {
            server::serve(args.listen, reviews::Reviews::new(version, &ratings)?).await
        }
    }
}
