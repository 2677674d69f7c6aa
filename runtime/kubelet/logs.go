package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/runtime/pods"
)

// logOptions are what a request wants of a log.
type logOptions struct {
	follow, previous, timestamps bool
	tail                         int64 // lines; -1 = all
	limit                        int64 // bytes; 0 = none
	since                        time.Time
	stream                       string // "stdout", "stderr" or "" for both
}

// parseLogOptions reads the query of /containerLogs, which is that of the pods/log API.
func parseLogOptions(q url.Values, now time.Time) (logOptions, error) {
	o := logOptions{tail: -1}
	for name, flag := range map[string]*bool{"follow": &o.follow, "previous": &o.previous, "timestamps": &o.timestamps} {
		if text := q.Get(name); text != "" {
			v, err := strconv.ParseBool(text)
			if err != nil {
				return o, fmt.Errorf("%s: %q is not a boolean", name, text)
			}
			*flag = v
		}
	}
	number := func(name string, least int64) (int64, bool, error) {
		text := q.Get(name)
		if text == "" || name == "tailLines" && text == "all" {
			return 0, false, nil
		}
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil || v < least {
			return 0, false, fmt.Errorf("%s: %q is not a number of at least %d", name, text, least)
		}
		return v, true, nil
	}
	if v, set, err := number("tailLines", 0); err != nil {
		return o, err
	} else if set {
		o.tail = v
	}
	if v, set, err := number("limitBytes", 1); err != nil {
		return o, err
	} else if set {
		o.limit = v
	}
	if v, set, err := number("sinceSeconds", 1); err != nil {
		return o, err
	} else if set {
		o.since = now.Add(-time.Duration(v) * time.Second)
	}
	if text := q.Get("sinceTime"); text != "" {
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return o, fmt.Errorf("sinceTime: %w", err)
		}
		o.since = t
	}
	switch stream := q.Get("stream"); stream {
	case "", corev1.LogStreamAll:
	case corev1.LogStreamStdout:
		o.stream = "stdout"
	case corev1.LogStreamStderr:
		o.stream = "stderr"
	default:
		return o, fmt.Errorf("stream: %q is none of All, Stdout, Stderr", stream)
	}
	return o, nil
}

// serveLogs writes a container's log, and follows it when asked to.
func (s *Server) serveLogs(w http.ResponseWriter, r *http.Request) {
	options, err := parseLogOptions(r.URL.Query(), time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	name := r.PathValue("container")
	attempt, err := logAttempt(pod, name, options.previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reader := logReader{path: s.cfg.Agent.LogPath(pod, name, attempt), options: options, running: func() bool {
		c, err := s.cfg.Agent.Container(pod.UID, name)
		return err == nil && c.Attempt == attempt
	}}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := &flushWriter{w: w}
	if options.follow {
		out.flush() // the client learns at once that it is connected
	}
	switch err := reader.copy(r.Context(), out); {
	case err == nil, errors.Is(err, context.Canceled):
	case !out.written && !options.follow:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		s.log.Debug("a log ended early", "pod", pod.Name, "container", name, "err", err)
	}
}

// logAttempt finds the attempt whose log is asked for, or says in the kubelet's words why there is none.
func logAttempt(pod *corev1.Pod, name string, previous bool) (int, error) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			st := &list[i]
			if st.Name != name {
				continue
			}
			attempt, ok := pods.CurrentLog(st, previous)
			switch {
			case ok:
				return attempt, nil
			case previous:
				return 0, fmt.Errorf("previous terminated container %q in pod %q not found", name, pod.Name)
			}
			reason := ""
			if st.State.Waiting != nil {
				reason = st.State.Waiting.Reason
			}
			if reason == "ErrImagePull" || reason == "ImagePullBackOff" {
				return 0, fmt.Errorf("container %q in pod %q is waiting to start: trying and failing to pull image", name, pod.Name)
			}
			return 0, fmt.Errorf("container %q in pod %q is waiting to start: %s", name, pod.Name, reason)
		}
	}
	return 0, fmt.Errorf("container %q in pod %q is not available", name, pod.Name)
}

// flushWriter sends each write on at once.
type flushWriter struct {
	w       http.ResponseWriter
	written bool
}

var _ io.Writer = (*flushWriter)(nil)

func (f *flushWriter) Write(p []byte) (int, error) {
	f.written = true
	n, err := f.w.Write(p)
	if err == nil {
		f.flush()
	}
	return n, err
}

func (f *flushWriter) flush() {
	if flusher, ok := f.w.(http.Flusher); ok {
		flusher.Flush()
	}
}
