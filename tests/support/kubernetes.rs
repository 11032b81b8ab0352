//! The kinds that deploy/kubernetes uses, as the API defines them and no field more: a misspelt field is one that the
//! cluster drops in silence. `monitoring.coreos.com/v1` is the Prometheus operator's.

use std::collections::BTreeMap;

use serde::Deserialize;

pub type Words = BTreeMap<String, String>;

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields)]
pub enum Object {
    Namespace(Bare),
    ServiceAccount(ServiceAccount),
    ConfigMap(ConfigMap),
    Deployment(Of<Deployment>),
    Service(Of<Service>),
    ServiceMonitor(Of<ServiceMonitor>),
    PrometheusRule(Of<PrometheusRule>),
}

/// An object with a `spec`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Of<S> {
    pub api_version: String,
    pub metadata: Metadata,
    pub spec: S,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bare {
    pub api_version: String,
    pub metadata: Metadata,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    pub name: Option<String>,
    pub namespace: Option<String>,
    #[serde(default)]
    pub labels: Words,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccount {
    pub api_version: String,
    pub metadata: Metadata,
    pub automount_service_account_token: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMap {
    pub api_version: String,
    pub metadata: Metadata,
    pub data: Words,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    pub replicas: u32,
    pub strategy: Strategy,
    pub selector: Selector,
    pub template: Template,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strategy {
    #[serde(rename = "type")]
    pub kind: StrategyKind,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub enum StrategyKind {
    Recreate,
    RollingUpdate,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    pub match_labels: Words,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    pub metadata: Metadata,
    pub spec: Pod,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    pub service_account_name: String,
    pub automount_service_account_token: bool,
    #[serde(rename = "enableServiceLinks")]
    pub _enable_service_links: bool,
    #[serde(rename = "nodeSelector")]
    pub _node_selector: Words,
    pub host_network: bool,
    pub dns_policy: DnsPolicy,
    #[serde(rename = "terminationGracePeriodSeconds")]
    pub _termination_grace_period_seconds: u32,
    pub security_context: PodSecurity,
    pub containers: Vec<Container>,
    pub volumes: Vec<Volume>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub enum DnsPolicy {
    ClusterFirst,
    ClusterFirstWithHostNet,
    Default,
    None,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSecurity {
    pub run_as_non_root: bool,
    pub run_as_user: u32,
    #[serde(rename = "runAsGroup")]
    pub _run_as_group: u32,
    #[serde(rename = "supplementalGroups")]
    pub _supplemental_groups: Vec<u32>,
    #[serde(rename = "seccompProfile")]
    pub _seccomp_profile: Seccomp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seccomp {
    #[serde(rename = "type")]
    pub _kind: SeccompKind,
}

#[derive(Debug, Deserialize)]
pub enum SeccompKind {
    RuntimeDefault,
    Localhost,
    Unconfined,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Container {
    #[serde(rename = "name")]
    pub _name: String,
    pub image: String,
    pub args: Vec<String>,
    pub ports: Vec<ContainerPort>,
    pub startup_probe: Probe,
    pub liveness_probe: Probe,
    pub readiness_probe: Probe,
    #[serde(rename = "resources")]
    pub _resources: Resources,
    pub security_context: Security,
    pub volume_mounts: Vec<Mount>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerPort {
    pub name: String,
    pub container_port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    pub http_get: HttpGet,
    #[serde(rename = "periodSeconds")]
    pub _period_seconds: u32,
    #[serde(rename = "timeoutSeconds")]
    pub _timeout_seconds: Option<u32>,
    #[serde(rename = "failureThreshold")]
    pub _failure_threshold: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpGet {
    pub path: String,
    pub port: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    #[serde(rename = "requests")]
    pub _requests: Amounts,
    #[serde(rename = "limits")]
    pub _limits: Amounts,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amounts {
    #[serde(rename = "cpu")]
    pub _cpu: Option<String>,
    #[serde(rename = "memory")]
    pub _memory: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Security {
    pub allow_privilege_escalation: bool,
    pub read_only_root_filesystem: bool,
    pub capabilities: Capabilities,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    pub drop: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    pub name: String,
    pub config_map: Option<Named>,
    pub host_path: Option<HostPath>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    pub name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPath {
    pub path: String,
    #[serde(rename = "type")]
    pub _kind: HostPathKind,
}

#[derive(Debug, Deserialize)]
pub enum HostPathKind {
    Directory,
    File,
    Socket,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    #[serde(rename = "clusterIP")]
    pub _cluster_ip: String,
    pub selector: Words,
    pub ports: Vec<ServicePort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub target_port: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceMonitor {
    pub job_label: String,
    pub selector: Selector,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    pub port: String,
    pub path: String,
    #[serde(rename = "interval")]
    pub _interval: String,
    #[serde(rename = "scrapeTimeout")]
    pub _scrape_timeout: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrometheusRule {
    pub groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    #[serde(rename = "name")]
    pub _name: String,
    #[serde(rename = "interval")]
    pub _interval: Option<String>,
    pub rules: Vec<Rule>,
}

/// An alert or a recording, never both or neither.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Rule {
    Alert(Alert),
    Record(Record),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    pub alert: String,
    #[serde(rename = "expr")]
    pub _expr: String,
    #[serde(rename = "for")]
    pub _hold: Option<String>,
    #[serde(rename = "keep_firing_for")]
    pub _keep: Option<String>,
    #[serde(default, rename = "labels")]
    pub _labels: Words,
    #[serde(default, rename = "annotations")]
    pub _annotations: Words,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub record: String,
    #[serde(rename = "expr")]
    pub _expr: String,
    #[serde(default, rename = "labels")]
    pub _labels: Words,
}

impl Object {
    /// The group and version that the API gives the kind.
    pub fn expected_version(&self) -> &'static str {
        match self {
            Self::Namespace(_) | Self::ServiceAccount(_) | Self::ConfigMap(_) | Self::Service(_) => "v1",
            Self::Deployment(_) => "apps/v1",
            Self::ServiceMonitor(_) | Self::PrometheusRule(_) => "monitoring.coreos.com/v1",
        }
    }

    pub fn version(&self) -> &str {
        match self {
            Self::Namespace(object) => &object.api_version,
            Self::ServiceAccount(object) => &object.api_version,
            Self::ConfigMap(object) => &object.api_version,
            Self::Deployment(object) => &object.api_version,
            Self::Service(object) => &object.api_version,
            Self::ServiceMonitor(object) => &object.api_version,
            Self::PrometheusRule(object) => &object.api_version,
        }
    }

    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Namespace(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
            Self::ConfigMap(object) => &object.metadata,
            Self::Deployment(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::ServiceMonitor(object) => &object.metadata,
            Self::PrometheusRule(object) => &object.metadata,
        }
    }
}

/// Every object of a file; the error says which and why.
pub fn read(text: &str) -> Result<Vec<Object>, String> {
    let mut objects = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let value =
            serde_yaml_ng::Value::deserialize(document).map_err(|error| format!("{index}: {error}"))?;
        let object = serde_yaml_ng::from_value(value).map_err(|error| format!("object {index}: {error}"))?;
        objects.push(object);
    }
    Ok(objects)
}
