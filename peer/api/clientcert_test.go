package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

func TestCertificatesAreVerifiedOnceAMinute(t *testing.T) {
	now, asked := time.Now(), 0
	var refuse error
	c := newCertificates(authenticator.RequestFunc(func(req *http.Request) (*authenticator.Response, bool, error) {
		asked++
		name := string(req.TLS.PeerCertificates[0].Raw)
		return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, refuse == nil, refuse
	}))
	c.now = func() time.Time { return now }
	ask := func(name string, notAfter time.Time) (string, bool) {
		req := &http.Request{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Raw: []byte(name), NotAfter: notAfter}}}}
		response, ok, err := c.AuthenticateRequest(req)
		if err != nil || !ok {
			return "", false
		}
		return response.User.GetName(), true
	}
	year, soon := now.AddDate(1, 0, 0), now.Add(10*time.Second)
	for _, step := range []struct {
		after    time.Duration
		name     string
		notAfter time.Time
		asked    int
	}{
		{0, "anna", year, 1}, {0, "anna", year, 1}, {0, "berta", soon, 2}, {9 * time.Second, "berta", soon, 2},
		{2 * time.Second, "berta", soon, 3}, {0, "anna", year, 3}, {50 * time.Second, "anna", year, 4},
	} {
		now = now.Add(step.after)
		if name, ok := ask(step.name, step.notAfter); !ok || name != step.name || asked != step.asked {
			t.Errorf("%+v: %q, %v, verified %d times", step, name, ok, asked)
		}
	}
	refuse = errors.New("unknown authority")
	for range 2 {
		if _, ok := ask("clara", year); ok {
			t.Error("a refused certificate was let in")
		}
	}
	if asked != 6 {
		t.Errorf("verified %d times: a refusal is not remembered", asked)
	}
	if _, ok, err := c.AuthenticateRequest(&http.Request{}); ok || err != nil {
		t.Errorf("without a certificate: %v, %v", ok, err)
	}
}
