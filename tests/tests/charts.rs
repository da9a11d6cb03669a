//! The CustomResourceDefinitions of the chart are those that the types give. `UPDATE_GOLDEN=1` writes them anew.

use std::path::Path;

#[test]
fn definitions_in_the_chart_are_fresh() {
    let file = Path::new("../charts/base/crds/istio.yaml");
    let mut text = "# Made from the types in crates/api/src/crd: do not edit (UPDATE_GOLDEN=1 cargo test --workspace --test charts).\n".to_owned();
    for definition in api::definition::all() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&definition).expect("a definition is YAML"));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("the folder can be made");
        std::fs::write(file, &text).expect("the file can be written");
    }
    let held = std::fs::read_to_string(file).unwrap_or_default();
    assert!(held == text, "{} is not what the types give; run this test with UPDATE_GOLDEN=1", file.display());
}
