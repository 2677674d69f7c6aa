package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/emicklei/go-restful/v3"
	"k8s.io/apimachinery/pkg/version"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	openapiv2 "k8s.io/kube-aggregator/pkg/controllers/openapi/aggregator"
	openapiv3 "k8s.io/kube-aggregator/pkg/controllers/openapiv3/aggregator"
	"k8s.io/kube-openapi/pkg/aggregator"
	openapibuilder "k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/cached"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// serveOpenAPI serves one document for built-in and custom resources, in both versions. What describes the built-in
// groups is tens of megabytes in memory and few clients ever ask: each part is built when it is first asked for.
func serveOpenAPI(kube, extensions *genericapiserver.GenericAPIServer, config *genericapiserver.Config) {
	serveOpenAPI2(kube, extensions, config.OpenAPIConfig)

	groups := &groupDocuments{
		builtin: map[string]*groupDocument{},
		config:  config.OpenAPIV3Config,
		version: kube.EffectiveVersion.Info(),
		custom:  extensions.UnprotectedHandler(),
	}
	for _, service := range kube.Handler.GoRestfulContainer.RegisteredWebServices() {
		groups.builtin[strings.TrimPrefix(service.RootPath(), "/")] = &groupDocument{service: service}
	}
	kube.Handler.NonGoRestfulMux.HandleFunc("/openapi/v3", groups.serveIndex)
	kube.Handler.NonGoRestfulMux.HandlePrefix("/openapi/v3/", http.HandlerFunc(groups.serveGroup))
}

func serveOpenAPI2(kube, extensions *genericapiserver.GenericAPIServer, config *openapicommon.Config) {
	builtin := cached.Once(cached.Func(func() (*spec.Swagger, string, error) {
		routes := restfuladapter.AdaptWebServices(kube.Handler.GoRestfulContainer.RegisteredWebServices())
		swagger, err := openapibuilder.BuildOpenAPISpecFromRoutes(routes, config)
		if err != nil {
			return nil, "", fmt.Errorf("build OpenAPI v2: %w", err)
		}
		swagger.Definitions = handler.PruneDefaults(swagger.Definitions)
		return swagger, "builtin", nil
	}))
	downloader := openapiv2.NewDownloader()
	custom := openapiv2.NewCacheableDownloader("custom resources", &downloader, extensions.UnprotectedHandler())
	merged := cached.MergeList(mergeOpenAPI2, []cached.Value[*spec.Swagger]{builtin, custom})
	handler.NewOpenAPIServiceLazy(merged).RegisterOpenAPIVersionedService("/openapi/v2", kube.Handler.NonGoRestfulMux)
}

func mergeOpenAPI2(parts []cached.Result[*spec.Swagger]) (*spec.Swagger, string, error) {
	var merged *spec.Swagger
	var etags []string
	for _, part := range parts {
		swagger, etag, err := part.Get()
		if err != nil {
			return nil, "", err
		}
		etags = append(etags, etag)
		if merged == nil {
			head := *swagger
			head.Paths, head.Definitions, head.Parameters = nil, nil, nil // the merge fills these
			merged = &head
		}
		if err := aggregator.MergeSpecsIgnorePathConflictRenamingDefinitionsAndParameters(merged, swagger); err != nil {
			return nil, "", fmt.Errorf("merge OpenAPI v2: %w", err)
		}
	}
	return merged, strings.Join(etags, "+"), nil
}

// groupDocuments serves OpenAPI v3, which has one document per group and version.
type groupDocuments struct {
	builtin map[string]*groupDocument // by path, for instance "apis/apps/v1"
	config  *openapicommon.OpenAPIV3Config
	version *version.Info
	custom  http.Handler
}

// groupDocument is one group's document, built once.
type groupDocument struct {
	service *restful.WebService
	once    sync.Once
	handler http.Handler
}

// serveIndex lists the documents. Those of built-in groups change only with the version of the server, so their hash is
// made of that, and need not be built to be listed.
func (g *groupDocuments) serveIndex(w http.ResponseWriter, _ *http.Request) {
	index := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	downloader := openapiv3.NewDownloader()
	if custom, _, err := downloader.OpenAPIV3Root(g.custom); err == nil && custom != nil {
		index.Paths = custom.Paths
	}
	for path := range g.builtin {
		index.Paths[path] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: "/openapi/v3/" + path + "?hash=" + g.hash()}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(&index) // a client that went away is not our error
}

func (g *groupDocuments) hash() string { return g.version.GitVersion + g.version.GitCommit }

func (g *groupDocuments) serveGroup(w http.ResponseWriter, r *http.Request) {
	document, ok := g.builtin[strings.TrimPrefix(r.URL.Path, "/openapi/v3/")]
	if !ok {
		g.custom.ServeHTTP(w, r)
		return
	}
	document.once.Do(func() {
		container := restful.NewContainer()
		container.Add(document.service)
		paths := mux.NewPathRecorderMux("openapi-v3")
		routes.OpenAPI{V3Config: g.config}.InstallV3(container, paths)
		document.handler = paths
	})
	in := r.Clone(r.Context())
	in.URL.RawQuery = ""
	if r.URL.Query().Get("hash") == g.hash() {
		w.Header().Set("Cache-Control", "public, immutable, max-age=31536000")
	}
	document.handler.ServeHTTP(w, in)
}
