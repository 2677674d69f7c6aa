package volumes

import (
	"context"
	"errors"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// defaultTokenSeconds is the life of a token whose source does not say.
	defaultTokenSeconds int64 = 3600
	// renewAfter is the part of a token's life after which it is renewed.
	renewAfter = 0.8
	// renewAtLatest bounds that for very long tokens, as Kubernetes documents it.
	renewAtLatest = 24 * time.Hour
	// renewRetry is how soon a renewal that failed is tried again while the old token is still good.
	renewRetry = 30 * time.Second
)

// tokenKey is what a token was made for.
type tokenKey struct {
	pod      types.UID
	audience string
	seconds  int64
}

// token as it was issued.
type token struct {
	text    string
	renew   time.Time
	expires time.Time
}

// tokenFile is the file of a projected service-account token, renewed when most of its life is over. renew is when that will be.
func (m *Manager) tokenFile(ctx context.Context, pod *corev1.Pod, s *corev1.ServiceAccountTokenProjection, mode *int32, now time.Time) (_ map[string]file, renew time.Time, _ error) {
	seconds := defaultTokenSeconds
	if s.ExpirationSeconds != nil {
		seconds = *s.ExpirationSeconds
	}
	key := tokenKey{pod: pod.UID, audience: s.Audience, seconds: seconds}
	m.mu.Lock()
	have, known := m.tokens[key]
	m.mu.Unlock()
	if !known || !now.Before(have.renew) {
		fresh, err := m.issue(ctx, pod, key, now)
		switch {
		case err == nil:
			have = fresh
		case known && now.Before(have.expires):
			have.renew = now.Add(renewRetry)
		default:
			return nil, time.Time{}, fmt.Errorf("service-account token: %w", err)
		}
		m.mu.Lock()
		m.tokens[key] = have
		m.mu.Unlock()
	}
	f := file{data: []byte(have.text), mode: modeOf(nil, mode), uid: -1}
	sc := pod.Spec.SecurityContext
	switch user := commonUser(pod); {
	case sc != nil && sc.FSGroup != nil:
		f.mode = 0o600 // and readable for the group
	case user != nil:
		f.mode, f.uid = 0o600, int(*user)
	}
	return map[string]file{s.Path: f}, have.renew, nil
}

func (m *Manager) issue(ctx context.Context, pod *corev1.Pod, key tokenKey, now time.Time) (token, error) {
	if m.cfg.Objects.Token == nil {
		return token{}, errors.New("tokens are not supported on this node")
	}
	spec := authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &key.seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}
	if key.audience != "" {
		spec.Audiences = []string{key.audience}
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	got, err := m.cfg.Objects.Token(ctx, pod.Namespace, account, spec)
	if err != nil {
		return token{}, err
	}
	expires := got.ExpirationTimestamp.Time
	life := time.Duration(float64(expires.Sub(now)) * renewAfter)
	return token{text: got.Token, expires: expires, renew: now.Add(min(life, renewAtLatest))}, nil
}

// commonUser is the user that all containers of a pod run as, when the spec says so.
func commonUser(pod *corev1.Pod) *int64 {
	var user *int64
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			var own *int64
			if pod.Spec.SecurityContext != nil {
				own = pod.Spec.SecurityContext.RunAsUser
			}
			if sc := list[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
				own = sc.RunAsUser
			}
			if own == nil || user != nil && *user != *own {
				return nil
			}
			user = own
		}
	}
	return user
}
