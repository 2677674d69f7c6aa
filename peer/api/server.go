package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	extensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"shoal/peer/api/storage"
)

// Server is the Kubernetes API of one peer.
type Server struct {
	config    Config
	built     chan struct{} // closed when New ends; handler is set by then unless New failed
	handler   http.Handler
	run       func(context.Context) error
	client    kubernetes.Interface
	admit     admission.Interface
	resources resources
	ports     *portBitmap
	directory *storage.Directory
	pods      *PodSource
}

// New builds the server. It serves [Server.Handler] at once, but answers most requests only while [Server.Run] runs.
// ctx bounds the construction only.
func New(ctx context.Context, config Config) (*Server, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	if err := prepareProcess(config.Logger); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	s := &Server{config: config, built: make(chan struct{}), resources: resources{}, directory: storage.NewDirectory(config.Host)}
	defer close(s.built)
	b, err := newBuilder(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	extensions, err := b.extensions()
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	kube, err := b.kube(extensions)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	if err := b.finish(kube, extensions); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	return s, nil
}

func (b *builder) finish(kube *genericapiserver.GenericAPIServer, extensions *extensionsapiserver.CustomResourceDefinitions) error {
	s := b.server
	if err := b.addHooks(kube); err != nil {
		return err
	}
	if err := listCustomGroups(kube, extensions); err != nil {
		return err
	}
	prepared := kube.PrepareRun()
	serveOpenAPI(kube, extensions.GenericAPIServer, b.generic)
	// nothing to listen on: no certificates either
	kube.SecureServingInfo = &genericapiserver.SecureServingInfo{Listener: b.generic.SecureServing.Listener}
	s.run = prepared.RunWithContext
	s.admit = b.generic.AdmissionControl
	s.handler = kube.Handler
	return nil
}

// Handler serves the API. Requests that came over TLS authenticate by their verified client certificate.
func (s *Server) Handler() http.Handler { return s.handler }

// loaded waits for the end of New: parts of the server begin to ask it before it is whole.
func (s *Server) loaded() http.Handler {
	<-s.built
	if s.handler == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "the API could not be built", http.StatusServiceUnavailable)
		})
	}
	return s.handler
}

// Run runs informers, custom resources and the writing of initial objects until ctx ends, then lets requests in flight
// finish.
func (s *Server) Run(ctx context.Context) error {
	if err := s.run(ctx); err != nil {
		return fmt.Errorf("api: %w", err)
	}
	return nil
}

// Loopback configures a client inside this process with all rights. It needs no socket and no encryption.
func (s *Server) Loopback() *rest.Config {
	return newLoopbackConfig(s.loaded, privilegedUser())
}

// LoopbackAs configures a client inside this process for a user, for instance system:node:<name> in system:nodes.
// Authorisation and admission hold for it as for a user from outside.
func (s *Server) LoopbackAs(name string, groups ...string) *rest.Config {
	return newLoopbackConfig(s.loaded, &user.DefaultInfo{Name: name, Groups: append(groups, user.AllAuthenticated)})
}

// Pods is the source of informers of pods.
func (s *Server) Pods() *PodSource { return s.pods }

// Ready asks /readyz and returns nil, or what is not ready.
func (s *Server) Ready(ctx context.Context) error {
	body, err := s.client.CoreV1().RESTClient().Get().AbsPath("/readyz").Param("verbose", "true").DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("api not ready: %w: %s", err, body)
	}
	return nil
}

// WaitReady waits until the API is ready or ctx ends.
func (s *Server) WaitReady(ctx context.Context) error {
	for {
		err := s.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
