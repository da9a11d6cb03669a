//! Access logs.

use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog as XdsLog, AccessLogFilter};
use envoy_types::pb::envoy::config::core::v3::SubstitutionFormatString;
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format as XdsFormat;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat as FileFormat;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::StdoutAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::stdout_access_log::AccessLogFormat as StdoutFormat;

use crate::telemetry::access_log::{AccessLog, Compare, Layout, LogFilter};
use crate::telemetry::format::{Format, ISTIO_TEXT};

/// Compiles the access logs of a chain or listener.
pub(crate) fn compile(logs: &[XdsLog]) -> Result<Vec<AccessLog>, String> {
    logs.iter().map(|log| one(log).map_err(|error| format!("access log {:?}: {error}", log.name))).collect()
}

fn one(log: &XdsLog) -> Result<AccessLog, String> {
    let Some(ConfigType::TypedConfig(any)) = &log.config_type else { return Err("it has no configuration".to_owned()) };
    let (path, layout): (Arc<str>, Layout) = match any.type_url.rsplit('/').next().unwrap_or_default() {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
            let config: FileAccessLog = api::xds::unpack(any)?;
            let layout = match &config.access_log_format {
                None => Layout::Text(Format::parse(ISTIO_TEXT)?),
                Some(FileFormat::Format(text)) => Layout::Text(Format::parse(text)?),
                Some(FileFormat::JsonFormat(json) | FileFormat::TypedJsonFormat(json)) => object(json)?,
                Some(FileFormat::LogFormat(format)) => layout(format)?,
            };
            (config.path.as_str().into(), layout)
        }
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            let config: StdoutAccessLog = api::xds::unpack(any)?;
            let layout = match &config.access_log_format {
                None => Layout::Text(Format::parse(ISTIO_TEXT)?),
                Some(StdoutFormat::LogFormat(format)) => layout(format)?,
            };
            ("/dev/stdout".into(), layout)
        }
        other => return Err(format!("the logger {other:?} is not known to this proxy")),
    };
    Ok(AccessLog { path, layout, filter: log.filter.as_ref().map_or(Ok(LogFilter::All), filter)? })
}

fn layout(format: &SubstitutionFormatString) -> Result<Layout, String> {
    match &format.format {
        Some(XdsFormat::TextFormat(text)) => Ok(Layout::Text(Format::parse(text)?)),
        Some(XdsFormat::TextFormatSource(source)) => match &source.specifier {
            Some(envoy_types::pb::envoy::config::core::v3::data_source::Specifier::InlineString(text)) => {
                Ok(Layout::Text(Format::parse(text)?))
            }
            _ => Err("a format must be given in place".to_owned()),
        },
        Some(XdsFormat::JsonFormat(json)) => object(json),
        None => Ok(Layout::Text(Format::parse(ISTIO_TEXT)?)),
    }
}

fn object(json: &api::xds::Struct) -> Result<Layout, String> {
    let mut fields = Vec::new();
    for (key, text) in super::endpoint::texts_of(json) {
        fields.push((key, Format::parse(&text)?));
    }
    if fields.len() != json.fields.len() {
        return Err("a JSON format can hold texts only".to_owned());
    }
    Ok(Layout::Json(fields))
}

fn filter(filter: &AccessLogFilter) -> Result<LogFilter, String> {
    match &filter.filter_specifier {
        None => Ok(LogFilter::All),
        Some(FilterSpecifier::ResponseFlagFilter(flags)) => Ok(LogFilter::Flags(flags.flags.clone())),
        Some(FilterSpecifier::StatusCodeFilter(status)) => {
            let Some(comparison) = &status.comparison else {
                return Err("a status filter has no comparison".to_owned());
            };
            let value = comparison.value.as_ref().map_or(0, |value| value.default_value);
            let compare = match comparison.op {
                0 => Compare::Equal,
                1 => Compare::AtLeast,
                2 => Compare::AtMost,
                _ => Compare::Unequal,
            };
            Ok(LogFilter::Status(compare, u16::try_from(value).map_err(|_| format!("{value} is not a status"))?))
        }
        Some(FilterSpecifier::AndFilter(and)) => {
            Ok(LogFilter::And(and.filters.iter().map(self::filter).collect::<Result<_, _>>()?))
        }
        Some(FilterSpecifier::OrFilter(or)) => {
            Ok(LogFilter::Or(or.filters.iter().map(self::filter).collect::<Result<_, _>>()?))
        }
        Some(_) => Err("its filter is of a kind that is not built (status, response flags, and, or are)".to_owned()),
    }
}
