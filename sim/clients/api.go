package clients

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"shoal/sim/history"
)

// requestTimeout is when a client gives a request up. What became of a write is then unknown.
const requestTimeout = 6 * time.Second

// API speaks to one peer, for one client. It is plain HTTP on purpose: client-go repeats requests by itself, and a history must know of
// each.
type API struct {
	peer string
	base string
	http *http.Client
}

// NewAPI makes a client with connections of its own.
func NewAPI(peer string, config *rest.Config, http2 bool) (*API, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		TLSClientConfig: tlsConfig, DialContext: config.Dial, ForceAttemptHTTP2: http2, TLSHandshakeTimeout: requestTimeout,
		MaxIdleConnsPerHost: 2, DisableCompression: true,
	}
	if !http2 {
		tlsConfig.NextProtos = []string{"http/1.1"}
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	} else {
		// A connection to a host that is gone must not be waited on for longer than a request.
		transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: requestTimeout / 2, PingTimeout: requestTimeout / 2}
	}
	return &API{peer: peer, base: config.Host, http: &http.Client{Transport: transport}}, nil
}

// Close ends the connections that nobody uses.
func (a *API) Close() { a.http.CloseIdleConnections() }

// refusal is an answer that is none of 2xx.
type refusal struct {
	code   int
	status metav1.Status
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%d %s: %s", r.code, r.status.Reason, r.status.Message)
}

// request begins one and returns its answer's body. Errors: *refusal, or the transport's.
func (a *API) request(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, a.base+path, content)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	answer, err := a.http.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode < 300 {
		return answer.Body, nil
	}
	defer answer.Body.Close()
	refused := &refusal{code: answer.StatusCode}
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err == nil && json.Unmarshal(text, &refused.status) != nil {
		refused.status.Message = string(text)
	}
	return nil, refused
}

// Do is a whole request.
func (a *API) Do(ctx context.Context, method, path string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := a.request(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	return io.ReadAll(answer)
}

// judge says what an error tells about an operation. A peer that answers 503 promises that nothing happened; the checkers hold it to that.
func judge(op *history.Operation, err error) {
	op.Error = err.Error()
	var refused *refusal
	var network *net.OpError
	switch {
	case errors.As(err, &refused):
		op.Outcome, op.Failure = verdict(op, refused)
	case errors.As(err, &network) && network.Op == "dial":
		op.Outcome, op.Failure = history.Failed, history.Refused
	default:
		op.Outcome = history.Unknown
	}
}

func verdict(op *history.Operation, refused *refusal) (history.Outcome, history.Failure) {
	switch refused.status.Reason {
	case metav1.StatusReasonAlreadyExists:
		return history.Failed, history.Exists
	case metav1.StatusReasonConflict:
		return history.Failed, history.Conflict
	case metav1.StatusReasonExpired, metav1.StatusReasonGone:
		return history.Failed, history.Expired
	case metav1.StatusReasonNotFound:
		if details := refused.status.Details; details != nil && details.Kind != "namespaces" && op.Kind != history.List {
			return history.Failed, history.Absent
		}
		return history.Failed, history.Refused
	}
	if refused.code >= 500 && refused.code != http.StatusServiceUnavailable {
		return history.Unknown, ""
	}
	return history.Failed, history.Refused
}

// parseRevision reads a resourceVersion.
func parseRevision(text string) (int64, error) {
	revision, err := strconv.ParseInt(text, 10, 64)
	if err != nil || revision <= 0 {
		return 0, fmt.Errorf("resourceVersion %q is none of ours", text)
	}
	return revision, nil
}
