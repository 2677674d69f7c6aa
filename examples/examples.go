// Package examples carries the files of this folder that the lab uses, so that the peer's binary can show the demo on its own.
package examples

import _ "embed"

// WebSource is the Go source of the demo's server (examples/web/main.go), a single file without dependencies.
//
//go:embed web/main.go
var WebSource []byte

// WebManifest is examples/web.yaml: a Deployment of three and its Service.
//
//go:embed web.yaml
var WebManifest []byte

// WebImage is the name under which web.yaml expects the demo's image.
const WebImage = "shoal.local/web:demo"
