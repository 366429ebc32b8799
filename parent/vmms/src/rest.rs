//! The REST interface. Paths and types are those of `parterre-api`.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use parterre_api::guest::{FreezeRequest, GuestAnswer, ItemPool, ItemValue, ShutdownRequest};
use parterre_api::{
    AdapterRequest, ErrorBody, ErrorCode, HostInfo, IntegrationService, IntegrationStatus, LinkRequest,
    MemoryRequest, MemoryStatus, ServiceChange, StopRequest, Switch, SwitchSettings, Vm, VmSettings,
};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;

use crate::{Error, Manager};

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match self.code() {
            ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        };
        (status, Json(self.body())).into_response()
    }
}

type Answer<T> = Result<T, Error>;

/// The interface of a manager.
pub fn router(manager: Manager) -> Router {
    Router::new()
        .route("/v1/host", get(host))
        .route("/v1/vms", get(list).post(create))
        .route("/v1/vms/{name}", get(show).delete(delete))
        .route("/v1/vms/{name}/watch", get(watch))
        .route("/v1/vms/{name}/network", post(add_adapter))
        .route("/v1/vms/{name}/network/{mac}", axum::routing::delete(remove_adapter))
        .route("/v1/vms/{name}/network/{mac}/link", put(set_link))
        .route("/v1/switches", get(switches).post(create_switch))
        .route("/v1/switches/{name}", get(switch).delete(delete_switch))
        .route("/v1/vms/{name}/disks", get(disks).post(add_disk))
        .route("/v1/vms/{name}/disks/{controller}/{lun}", axum::routing::delete(remove_disk))
        .route("/v1/vms/{name}/disks/{controller}/{lun}/medium", put(change_medium))
        .route("/v1/vms/{name}/disks/{controller}/{lun}/size", put(resize_disk))
        .route("/v1/vms/{name}/start", post(start))
        .route("/v1/vms/{name}/stop", post(stop))
        .route("/v1/vms/{name}/pause", post(pause))
        .route("/v1/vms/{name}/resume", post(resume))
        .route("/v1/vms/{name}/shutdown", post(shut_down))
        .route("/v1/vms/{name}/integration", get(integration))
        .route("/v1/vms/{name}/integration/{service}", put(set_service))
        .route("/v1/vms/{name}/screenshot", get(screenshot))
        .route("/v1/vms/{name}/memory", get(memory).put(set_memory))
        .route("/v1/vms/{name}/items/{pool}", get(items))
        .route("/v1/vms/{name}/items/external/{key}", put(set_item).delete(delete_item))
        .route("/v1/vms/{name}/freeze", post(freeze))
        .route("/v1/vms/{name}/thaw", post(thaw))
        .fallback(unknown)
        .with_state(manager)
}

/// What was sent, or an error that says what is wrong with it.
fn checked<T>(body: Result<Json<T>, JsonRejection>) -> Answer<T> {
    body.map(|Json(value)| value).map_err(|rejection| Error::BadRequest(rejection.body_text()))
}

async fn unknown() -> Response {
    let message = "there is no such request; the client may be of another version than vmms".into();
    (StatusCode::NOT_FOUND, Json(ErrorBody { code: ErrorCode::NotFound, message })).into_response()
}

async fn host(State(manager): State<Manager>) -> Json<HostInfo> {
    Json(manager.host())
}

async fn list(State(manager): State<Manager>) -> Json<Vec<Vm>> {
    Json(manager.list())
}

async fn create(
    State(manager): State<Manager>,
    body: Result<Json<VmSettings>, JsonRejection>,
) -> Answer<(StatusCode, Json<Vm>)> {
    Ok((StatusCode::CREATED, Json(manager.create(checked(body)?).await?)))
}

async fn disks(
    State(manager): State<Manager>,
    Path(name): Path<String>,
) -> Answer<Json<Vec<parterre_api::DiskSettings>>> {
    Ok(Json(manager.disks(&name)?))
}

async fn add_disk(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    body: Result<Json<parterre_api::DiskRequest>, JsonRejection>,
) -> Answer<(StatusCode, Json<parterre_api::DiskSettings>)> {
    let request = checked(body)?;
    let added = detached(async move { manager.add_disk(&name, request).await }).await?;
    Ok((StatusCode::CREATED, Json(added)))
}

async fn remove_disk(
    State(manager): State<Manager>,
    Path((name, controller, lun)): Path<(String, u8, u8)>,
) -> Answer<StatusCode> {
    detached(async move { manager.remove_disk(&name, controller, lun).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn change_medium(
    State(manager): State<Manager>,
    Path((name, controller, lun)): Path<(String, u8, u8)>,
    body: Result<Json<parterre_api::MediumRequest>, JsonRejection>,
) -> Answer<Json<parterre_api::DiskSettings>> {
    let request = checked(body)?;
    detached(async move { manager.change_medium(&name, (controller, lun), request).await }).await.map(Json)
}

async fn resize_disk(
    State(manager): State<Manager>,
    Path((name, controller, lun)): Path<(String, u8, u8)>,
    body: Result<Json<parterre_api::ResizeRequest>, JsonRejection>,
) -> Answer<Json<parterre_api::DiskSize>> {
    let request = checked(body)?;
    detached(async move { manager.resize_disk(&name, (controller, lun), request).await }).await.map(Json)
}

async fn show(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<Json<Vm>> {
    Ok(Json(manager.show_with_memory(&name).await?))
}

async fn delete(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<StatusCode> {
    manager.delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn add_adapter(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    body: Result<Json<AdapterRequest>, JsonRejection>,
) -> Answer<(StatusCode, Json<Vm>)> {
    let request = checked(body)?;
    let vm = detached(async move { manager.add_adapter(&name, request).await }).await?;
    Ok((StatusCode::CREATED, Json(vm)))
}

async fn remove_adapter(
    State(manager): State<Manager>,
    Path((name, mac)): Path<(String, String)>,
) -> Answer<StatusCode> {
    let mac = mac.parse().map_err(Error::BadRequest)?;
    detached(async move { manager.remove_adapter(&name, mac).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_link(
    State(manager): State<Manager>,
    Path((name, mac)): Path<(String, String)>,
    body: Result<Json<LinkRequest>, JsonRejection>,
) -> Answer<Json<Vm>> {
    let (mac, up) = (mac.parse().map_err(Error::BadRequest)?, checked(body)?.up);
    detached(async move { manager.set_link(&name, mac, up).await }).await.map(Json)
}

async fn switches(State(manager): State<Manager>) -> Json<Vec<Switch>> {
    Json(manager.switches())
}

async fn create_switch(
    State(manager): State<Manager>,
    body: Result<Json<SwitchSettings>, JsonRejection>,
) -> Answer<(StatusCode, Json<Switch>)> {
    let settings = checked(body)?;
    let switch = detached(async move { manager.create_switch(settings).await }).await?;
    Ok((StatusCode::CREATED, Json(switch)))
}

async fn switch(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<Json<Switch>> {
    Ok(Json(manager.switch(&name)?))
}

async fn delete_switch(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<StatusCode> {
    detached(async move { manager.delete_switch(&name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One line per state. A client that is slow misses states in between, never the last.
async fn watch(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<Response> {
    let states = WatchStream::new(manager.watch(&name)?);
    let lines = states.map(|vm| {
        serde_json::to_string(&vm).map(|mut line| {
            line.push('\n');
            line
        })
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// The operation goes on when the client that asked for it goes away.
async fn detached<T: Send + 'static>(work: impl Future<Output = Answer<T>> + Send + 'static) -> Answer<T> {
    tokio::spawn(work).await.map_err(|e| Error::Failed(format!("the operation broke off: {e}")))?
}

async fn start(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<Json<Vm>> {
    detached(async move { manager.start(&name).await }).await.map(Json)
}

async fn stop(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    body: Result<Json<StopRequest>, JsonRejection>,
) -> Answer<Json<Vm>> {
    let request = checked(body)?;
    detached(async move { manager.stop(&name, request).await }).await.map(Json)
}

async fn pause(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<Json<Vm>> {
    Ok(Json(manager.pause(&name, true).await?))
}

async fn resume(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<Json<Vm>> {
    Ok(Json(manager.pause(&name, false).await?))
}

async fn shut_down(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    body: Result<Json<ShutdownRequest>, JsonRejection>,
) -> Answer<Json<Vm>> {
    Ok(Json(manager.shut_down(&name, checked(body)?).await?))
}

async fn integration(
    State(manager): State<Manager>,
    Path(name): Path<String>,
) -> Answer<Json<IntegrationStatus>> {
    Ok(Json(manager.integration(&name).await?))
}

async fn set_service(
    State(manager): State<Manager>,
    Path((name, service)): Path<(String, String)>,
    body: Result<Json<ServiceChange>, JsonRejection>,
) -> Answer<Json<IntegrationStatus>> {
    let service: IntegrationService = service.parse().map_err(Error::BadRequest)?;
    Ok(Json(manager.set_service(&name, service, checked(body)?.enabled).await?))
}

async fn screenshot(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<Response> {
    let file = manager.screenshot(&name).await?;
    Ok(([(header::CONTENT_TYPE, "image/png")], file).into_response())
}

async fn memory(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<Json<MemoryStatus>> {
    Ok(Json(manager.memory(&name).await?))
}

async fn set_memory(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    body: Result<Json<MemoryRequest>, JsonRejection>,
) -> Answer<Json<MemoryStatus>> {
    Ok(Json(manager.set_memory(&name, checked(body)?).await?))
}

async fn items(
    State(manager): State<Manager>,
    Path((name, pool)): Path<(String, ItemPool)>,
) -> Answer<Json<BTreeMap<String, String>>> {
    Ok(Json(manager.items(&name, pool).await?))
}

async fn set_item(
    State(manager): State<Manager>,
    Path((name, key)): Path<(String, String)>,
    body: Result<Json<ItemValue>, JsonRejection>,
) -> Answer<StatusCode> {
    manager.set_item(&name, key, Some(checked(body)?.value)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_item(
    State(manager): State<Manager>,
    Path((name, key)): Path<(String, String)>,
) -> Answer<StatusCode> {
    manager.set_item(&name, key, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn freeze(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    body: Result<Json<FreezeRequest>, JsonRejection>,
) -> Answer<Json<GuestAnswer>> {
    Ok(Json(manager.freeze(&name, checked(body)?).await?))
}

async fn thaw(State(manager): State<Manager>, Path(name): Path<String>) -> Answer<Json<GuestAnswer>> {
    Ok(Json(manager.thaw(&name).await?))
}
