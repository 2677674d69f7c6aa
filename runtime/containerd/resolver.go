//go:build linux

package containerd

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"shoal/runtime/pods"
)

// contentStatus is what a tracker needs of containerd's content store.
type contentStatus interface {
	Info(ctx context.Context, dgst digest.Digest) (content.Info, error)
	Status(ctx context.Context, ref string) (content.Status, error)
}

// hosts says where an image is fetched from: the mirrors, then its registry.
// Credentials are for the registry alone; a mirror must never see them.
func (e *Engine) hosts(ctx context.Context, auth pods.Auth) docker.RegistryHosts {
	return func(registry string) ([]docker.RegistryHost, error) {
		var list []docker.RegistryHost
		if e.config.Mirrors != nil {
			for _, mirror := range e.config.Mirrors(ctx, registry) {
				host, err := mirrorHost(mirror)
				if err != nil {
					return nil, err
				}
				list = append(list, host)
			}
		}
		address, err := docker.DefaultHost(registry)
		if err != nil {
			return nil, err
		}
		host := docker.RegistryHost{
			Client:       http.DefaultClient,
			Host:         address,
			Scheme:       "https",
			Path:         "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		}
		if e.plainHTTP(registry) {
			host.Scheme = "http"
		}
		host.Authorizer, host.Header = authorizer(auth)
		return append(list, host), nil
	}
}

func mirrorHost(m Mirror) (docker.RegistryHost, error) {
	u, err := url.Parse(m.URL)
	if err != nil {
		return docker.RegistryHost{}, err
	}
	host := docker.RegistryHost{
		Client:       m.Client,
		Host:         u.Host,
		Scheme:       u.Scheme,
		Path:         strings.TrimSuffix(u.Path, "/") + "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}
	if host.Client == nil {
		host.Client = http.DefaultClient
	}
	return host, nil
}

// plainHTTP reports whether a registry is spoken to without TLS.
func (e *Engine) plainHTTP(registry string) bool {
	if e.config.PlainHTTP != nil {
		return e.config.PlainHTTP(registry)
	}
	name, _, err := net.SplitHostPort(registry)
	if err != nil {
		name = registry
	}
	ip := net.ParseIP(name)
	return name == "localhost" || (ip != nil && ip.IsLoopback())
}

func authorizer(auth pods.Auth) (docker.Authorizer, http.Header) {
	if auth.RegistryToken != "" {
		return nil, http.Header{"Authorization": {"Bearer " + auth.RegistryToken}}
	}
	return docker.NewDockerAuthorizer(docker.WithAuthCreds(func(string) (string, string, error) {
		if auth.IdentityToken != "" {
			return "", auth.IdentityToken, nil // an empty name marks a refresh token
		}
		return auth.Username, auth.Password, nil
	})), nil
}

// unauthorized reports whether a registry refused the credentials.
func unauthorized(err error) bool {
	if errors.Is(err, docker.ErrInvalidAuthorization) {
		return true
	}
	var unexpected remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &unexpected) {
		return unexpected.StatusCode == http.StatusUnauthorized || unexpected.StatusCode == http.StatusForbidden
	}
	return err != nil && (strings.Contains(err.Error(), "401 Unauthorized") || strings.Contains(err.Error(), "403 Forbidden"))
}

// diskFull also knows errors that have travelled through containerd as text.
func diskFull(err error) bool {
	return err != nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) ||
		strings.Contains(err.Error(), unix.ENOSPC.Error()) || strings.Contains(err.Error(), unix.EDQUOT.Error()))
}
