package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// serviceNode carries what peers ask each other's node: claims and lease renewals, as HTTP with JSON bodies.
const serviceNode = "shoal/node"

// Paths of serviceNode.
const (
	claimsPath = "/claims"
	leasePath  = "/lease"
)

// claimTimeout bounds one round trip to a node. A node that does not answer in time has refused.
const claimTimeout = 2 * time.Second

// maxNodeMessage bounds what one peer accepts from another on serviceNode.
const maxNodeMessage = 8 << 20

// nodeClient calls serviceNode of other peers over kept connections.
type nodeClient struct {
	http *http.Client
}

// newNodeClient makes a client whose URLs have a peer ID for a host.
func newNodeClient(dial func(ctx context.Context, peerID, service string) (net.Conn, error)) *nodeClient {
	return &nodeClient{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			peerID, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return dial(ctx, peerID, serviceNode)
		},
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     time.Minute,
	}}}
}

// claim asks a node for room. The answers come in the order of the claims.
func (c *nodeClient) claim(ctx context.Context, peerID string, request claimRequest) (claimAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	var answer claimAnswer
	if err := c.post(ctx, peerID, claimsPath, request, &answer); err != nil {
		return answer, fmt.Errorf("claiming room: %w", err)
	}
	if len(answer.Answers) != len(request.Claims) {
		return answer, fmt.Errorf("claiming room: %d answers to %d claims", len(answer.Answers), len(request.Claims))
	}
	return answer, nil
}

func (c *nodeClient) post(ctx context.Context, peerID, path string, body, answer any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+peerID+path, bytes.NewReader(encoded))
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, maxNodeMessage))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(content)))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(content, answer)
}

// answerJSON serves one kind of request: a JSON body in, a JSON body out.
func answerJSON[In, Out any](handle func(r *http.Request, in In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxNodeMessage)).Decode(&in); err != nil {
			http.Error(w, "unreadable request: "+err.Error(), http.StatusBadRequest)
			return
		}
		out, err := handle(r, in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// A caller that has gone needs no answer.
		_ = json.NewEncoder(w).Encode(out)
	}
}
