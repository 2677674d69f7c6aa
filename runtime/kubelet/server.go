// Package kubelet serves the kubelet's HTTP API for one node: logs, exec, attach, port-forward, the node's pods and its figures. The
// Kubernetes API of every peer calls it on behalf of kubectl.
//
// The caller provides the connection (mutual TLS over the peer link) and the decision who may do what; this package only asks it.
package kubelet

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/runtime/pods"
	"shoal/runtime/stats"
)

const (
	// streamIdle closes a stream on which nothing moved for so long.
	streamIdle = 4 * time.Hour
	// streamCreation is how long a client may take to open its streams.
	streamCreation = 30 * time.Second
)

// Config of a Server.
type Config struct {
	Agent   *pods.Agent
	Streams pods.Streams // the Engine
	Stats   *stats.Node
	// Authorize refuses a request with an error; the identity is in its TLS state. It is called for everything but /healthz.
	Authorize func(*http.Request) error
	Logger    *slog.Logger // nil = slog.Default()
}

// Server is the kubelet API of one node.
type Server struct {
	cfg Config
	log *slog.Logger
	mux *http.ServeMux
}

var _ http.Handler = (*Server)(nil)

// New returns the handler.
func New(cfg Config) (*Server, error) {
	if cfg.Agent == nil || cfg.Streams == nil || cfg.Stats == nil || cfg.Authorize == nil {
		return nil, errors.New("kubelet: Agent, Streams, Stats and Authorize are needed")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{cfg: cfg, log: cfg.Logger, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	s.handle("GET /pods", s.servePods)
	s.handle("GET /runningpods/{$}", s.serveRunning)
	s.handle("GET /stats/summary", s.serveSummary)
	s.handle("GET /metrics/resource", s.serveMetrics)
	s.handle("GET /containerLogs/{namespace}/{pod}/{container}", s.serveLogs)
	for _, method := range []string{"GET", "POST"} {
		s.handle(method+" /exec/{namespace}/{pod}/{container}", s.serveExec)
		s.handle(method+" /exec/{namespace}/{pod}/{uid}/{container}", s.serveExec)
		s.handle(method+" /attach/{namespace}/{pod}/{container}", s.serveAttach)
		s.handle(method+" /attach/{namespace}/{pod}/{uid}/{container}", s.serveAttach)
		s.handle(method+" /portForward/{namespace}/{pod}", s.servePortForward)
		s.handle(method+" /portForward/{namespace}/{pod}/{uid}", s.servePortForward)
	}
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Server) handle(pattern string, h http.HandlerFunc) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := s.cfg.Authorize(r); err != nil {
			s.log.Warn("refused a request to the kubelet API", "path", r.URL.Path, "from", r.RemoteAddr, "err", err)
			http.Error(w, "Forbidden: "+err.Error(), http.StatusForbidden)
			return
		}
		h(w, r)
	})
}

func (s *Server) writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("an answer was not delivered", "err", err)
	}
}

func podList(items []*corev1.Pod) *corev1.PodList {
	out := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{}}
	for _, p := range items {
		out.Items = append(out.Items, *p)
	}
	return out
}

func (s *Server) servePods(w http.ResponseWriter, _ *http.Request) {
	s.writeJSON(w, podList(s.cfg.Agent.Pods()))
}

// serveRunning lists pods that have a running container.
func (s *Server) serveRunning(w http.ResponseWriter, _ *http.Request) {
	var running []*corev1.Pod
	for _, p := range s.cfg.Agent.Pods() {
		for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
			for i := range list {
				if list[i].State.Running != nil && (len(running) == 0 || running[len(running)-1] != p) {
					running = append(running, p)
				}
			}
		}
	}
	s.writeJSON(w, podList(running))
}

func (s *Server) serveSummary(w http.ResponseWriter, r *http.Request) {
	summary, err := s.cfg.Stats.Summary(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.writeJSON(w, summary)
}

func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if err := s.cfg.Stats.WriteResourceMetrics(r.Context(), w); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// pod finds the pod that a request's path names, or answers that there is none.
func (s *Server) pod(w http.ResponseWriter, r *http.Request) *corev1.Pod {
	pod, err := s.cfg.Agent.Pod(r.PathValue("namespace"), r.PathValue("pod"), types.UID(r.PathValue("uid")))
	if err != nil {
		http.Error(w, "pod does not exist", http.StatusNotFound)
		return nil
	}
	return pod
}

// running finds the running container that a request's path names, or answers that there is none.
func (s *Server) running(w http.ResponseWriter, r *http.Request) (*corev1.Pod, string) {
	pod := s.pod(w, r)
	if pod == nil {
		return nil, ""
	}
	c, err := s.cfg.Agent.Container(pod.UID, r.PathValue("container"))
	switch {
	case errors.Is(err, pods.ErrNotFound):
		http.Error(w, "container not found ("+r.PathValue("container")+")", http.StatusNotFound)
		return nil, ""
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, ""
	}
	return pod, c.ID
}
