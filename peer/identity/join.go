package identity

import (
	"fmt"
	"net/http"
	"net/netip"
	"time"
)

const (
	// JoinService is the ALPN name of the join exchange on a peer's port. It
	// is the one service that asks for no client certificate.
	JoinService = "shoal/join"

	// MaxClockDifference is how far the clocks of joiner and cluster may be
	// apart: leases, certificates and revisions rely on roughly equal clocks.
	MaxClockDifference = 2 * time.Minute

	helloPath = "/hello"
	joinPath  = "/join"

	// joinLimit bounds both messages of the exchange, in bytes.
	joinLimit = 1 << 20
)

// Hello is what a peer tells anyone about its cluster; nothing in it is secret.
type Hello struct {
	ClusterID string    `json:"clusterID"`
	PeerID    string    `json:"peerID"`
	Name      string    `json:"name"`
	Version   string    `json:"version"`
	Time      time.Time `json:"time"`
}

// JoinRequest asks for membership. It is sent only to a server that proved to
// hold a certificate of the pinned cluster.
type JoinRequest struct {
	TokenID     string    `json:"tokenID"`
	TokenSecret string    `json:"tokenSecret"`
	Request     []byte    `json:"csr"` // PKCS #10, DER; only its key is used
	Name        string    `json:"name"`
	Version     string    `json:"version"`
	Zone        string    `json:"zone,omitempty"`
	WireGuard   string    `json:"wireGuard"` // public key, base64
	Time        time.Time `json:"time"`
	// Addresses under which the joiner can be reached; the first is the one
	// it advertises.
	Addresses []netip.Addr `json:"addresses"`
	// Port is the joiner's one TCP port and UDP gossip port.
	Port int `json:"port"`
}

// JoinResponse makes the joiner a full peer.
type JoinResponse struct {
	Cluster     *Cluster `json:"cluster"`     // with every shared secret
	Certificate []byte   `json:"certificate"` // the joiner's, DER
	// Members are gossip addresses, host:port, of peers believed alive.
	Members []string `json:"members"`
}

// PeerRecord is what the cluster writes down about a peer that joins.
type PeerRecord struct {
	PeerID    string
	Name      string
	Version   string
	Zone      string
	WireGuard WireGuardKey // public
	Addresses []netip.Addr // the first is the advertised one
	Port      int
	Joined    time.Time
}

// Reason is the machine-readable cause of a refused join.
type Reason string

// The reasons a peer gives for refusing a joiner.
const (
	ReasonWrongToken   Reason = "WrongToken"
	ReasonExpiredToken Reason = "ExpiredToken"
	ReasonNameTaken    Reason = "NameTaken"
	ReasonClock        Reason = "ClockDifference"
	ReasonMalformed    Reason = "Malformed"
	ReasonTooMany      Reason = "TooManyAttempts"
	ReasonUnavailable  Reason = "Unavailable"
)

// Refusal is a peer's no to a joiner: one sentence for people, a reason for programs.
type Refusal struct {
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
}

func (r *Refusal) Error() string { return r.Message }

func refusal(reason Reason, format string, arguments ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, arguments...)}
}

func (r *Refusal) status() int {
	switch r.Reason {
	case ReasonWrongToken, ReasonExpiredToken:
		return http.StatusForbidden
	case ReasonNameTaken, ReasonClock:
		return http.StatusConflict
	case ReasonTooMany:
		return http.StatusTooManyRequests
	case ReasonUnavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusBadRequest
	}
}

// CheckClock refuses clocks more than MaxClockDifference apart and names both.
func CheckClock(here, there time.Time) error {
	difference := here.Sub(there).Abs()
	if difference <= MaxClockDifference {
		return nil
	}
	return refusal(ReasonClock, "this host's clock says %s, the cluster's says %s, %s apart (at most %s is allowed): set this host's clock",
		stamp(here), stamp(there), difference.Round(time.Second), MaxClockDifference)
}
