//! What each service does.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::call;

/// A service of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Who buys.
    User,
    /// What is sold.
    Product,
    /// Takes orders: asks user and product, has payment take the money.
    Order,
    /// Takes money.
    Payment,
    /// Proposes products.
    Recommendation,
}

/// One running service and its state.
pub(crate) struct Shop {
    role: Role,
    version: String,
    proxy: Option<String>,
    state: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    orders: BTreeMap<u64, Value>,
    payments: BTreeMap<u64, Value>,
    /// Requests that failed once because they asked to.
    failed_once: HashSet<String>,
}

/// An order as a customer sends it.
#[derive(Deserialize)]
struct NewOrder {
    user: u64,
    product: u64,
    quantity: u64,
}

/// A payment as the order service sends it.
#[derive(Deserialize)]
struct NewPayment {
    order: u64,
    user: u64,
    amount_cents: u64,
}

type App = State<Arc<Shop>>;

const PRODUCTS: &[(&str, u64)] = &[("Teapot", 2_490), ("Cup", 890), ("Green tea, 100 g", 1_250)];

impl Shop {
    /// A service without orders or payments.
    pub(crate) fn new(role: Role, version: String, proxy: Option<String>) -> Self {
        Self { role, version, proxy, state: Mutex::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who answered, and whom it saw: the caller's identity as its own sidecar verified it.
    fn served(&self, headers: &HeaderMap) -> Value {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let caller = text("x-forwarded-client-cert")
            .and_then(|xfcc| xfcc.split([';', ',']).rev().find_map(|part| part.strip_prefix("URI=")));
        json!({
            "service": format!("{:?}", self.role).to_lowercase(),
            "version": self.version,
            "caller": caller,
            "attempt": text("x-envoy-attempt-count").and_then(|count| count.parse::<u32>().ok()),
            "request_id": text("x-request-id"),
        })
    }
}

/// The routes of the shop's role.
pub(crate) fn router(shop: Arc<Shop>) -> Router {
    let router = Router::new().route("/healthz", get(|| async { "ok\n" }));
    let router = match shop.role {
        Role::User => router.route("/api/v1/users/{id}", get(user)),
        Role::Product => router.route("/api/v1/products", get(products)).route("/api/v1/products/{id}", get(product)),
        Role::Order => router.route("/api/v1/orders", post(create_order)).route("/api/v1/orders/{id}", get(order)),
        Role::Payment => router
            .route("/api/v1/payments/create", post(create_payment))
            .route("/api/v1/payments/history/{user}", get(history)),
        Role::Recommendation => router.route("/api/v1/recommendations/{user}", get(recommend)),
    };
    router.fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such page") }).with_state(shop)
}

fn refuse(status: StatusCode, sentence: impl Into<String>) -> Response {
    (status, Json(json!({"error": sentence.into()}))).into_response()
}

async fn user(State(shop): App, headers: HeaderMap, Path(id): Path<u64>) -> Response {
    Json(json!({"id": id, "name": format!("Customer {id}"), "served": shop.served(&headers)})).into_response()
}

fn product_json(id: u64) -> Option<Value> {
    let (name, price) = PRODUCTS.get(usize::try_from(id).ok()?)?;
    Some(json!({"id": id, "name": name, "price_cents": price}))
}

async fn products(State(shop): App, headers: HeaderMap) -> Response {
    let all: Vec<Value> = (0..PRODUCTS.len() as u64).filter_map(product_json).collect();
    Json(json!({"products": all, "served": shop.served(&headers)})).into_response()
}

async fn product(State(shop): App, headers: HeaderMap, Path(id): Path<u64>) -> Response {
    match product_json(id) {
        Some(mut product) => {
            product["served"] = shop.served(&headers);
            Json(product).into_response()
        }
        None => refuse(StatusCode::NOT_FOUND, format!("there is no product {id}")),
    }
}

async fn recommend(State(shop): App, headers: HeaderMap, Path(user): Path<u64>) -> Response {
    // Each version of the service proposes something else.
    let pick = user.wrapping_add(shop.version.len() as u64) % PRODUCTS.len() as u64;
    Json(json!({"user": user, "product": product_json(pick), "served": shop.served(&headers)})).into_response()
}

async fn create_payment(State(shop): App, headers: HeaderMap, Json(payment): Json<NewPayment>) -> Response {
    let request = headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let mut book = shop.book();
    if headers.contains_key("x-demo-flaky") && book.failed_once.insert(request) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "failing once, as the header x-demo-flaky asks");
    }
    // Asked twice for one order, the first answer stands.
    let paid = book
        .payments
        .entry(payment.order)
        .or_insert_with(|| json!({"order": payment.order, "user": payment.user, "amount_cents": payment.amount_cents}));
    let mut answer = paid.clone();
    answer["served"] = shop.served(&headers);
    (StatusCode::CREATED, Json(answer)).into_response()
}

async fn history(State(shop): App, headers: HeaderMap, Path(user): Path<u64>) -> Response {
    let payments: Vec<Value> =
        shop.book().payments.values().filter(|payment| payment["user"] == user).cloned().collect();
    Json(json!({"payments": payments, "served": shop.served(&headers)})).into_response()
}

async fn order(State(shop): App, headers: HeaderMap, Path(id): Path<u64>) -> Response {
    match shop.book().orders.get(&id) {
        Some(order) => Json(json!({"order": order, "served": shop.served(&headers)})).into_response(),
        None => refuse(StatusCode::NOT_FOUND, format!("there is no order {id}")),
    }
}

async fn create_order(State(shop): App, headers: HeaderMap, Json(new): Json<NewOrder>) -> Response {
    match place(&shop, &headers, new).await {
        Ok(order) => (StatusCode::CREATED, Json(order)).into_response(),
        Err(refused) => *refused,
    }
}

/// Asks user and product, has payment take the money, then writes the order down.
async fn place(shop: &Shop, headers: &HeaderMap, new: NewOrder) -> Result<Value, Box<Response>> {
    let ask = |method, host, path: String, body| step(shop, headers, method, host, path, body);
    let user = ask(Method::GET, "user-service", format!("/api/v1/users/{}", new.user), None).await?;
    let product = ask(Method::GET, "product-service", format!("/api/v1/products/{}", new.product), None).await?;
    let amount = product["price_cents"].as_u64().unwrap_or_default() * new.quantity;
    let id = {
        let mut book = shop.book();
        let id = book.orders.keys().next_back().map_or(1, |last| last + 1);
        book.orders.insert(id, json!({"id": id, "state": "unpaid"}));
        id
    };
    let bill = json!({"order": id, "user": new.user, "amount_cents": amount});
    let payment = match ask(Method::POST, "payment-service", "/api/v1/payments/create".to_owned(), Some(bill)).await {
        Ok(payment) => payment,
        Err(refused) => {
            shop.book().orders.remove(&id);
            return Err(refused);
        }
    };
    let order = json!({"id": id, "state": "paid", "user": user["name"], "product": product["name"], "quantity": new.quantity, "amount_cents": amount});
    shop.book().orders.insert(id, order.clone());
    let calls = json!([user["served"], product["served"], payment["served"]]);
    Ok(json!({"order": order, "calls": calls, "served": shop.served(headers)}))
}

async fn step(
    shop: &Shop,
    headers: &HeaderMap,
    method: Method,
    host: &str,
    path: String,
    body: Option<Value>,
) -> Result<Value, Box<Response>> {
    match call(shop.proxy.as_deref(), method, host, &path, headers, body).await {
        Ok((200..=299, answer)) => Ok(answer),
        Ok((status, answer)) => {
            Err(Box::new(refuse(StatusCode::BAD_GATEWAY, format!("{host} answered {status}: {answer}"))))
        }
        Err(error) => Err(Box::new(refuse(StatusCode::BAD_GATEWAY, format!("{error:#}")))),
    }
}
