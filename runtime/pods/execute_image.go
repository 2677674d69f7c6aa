package pods

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// progressEvery is how often the progress of a long pull becomes an event.
const progressEvery = 10 * time.Second

func isGone(err error) bool { return apierrors.IsNotFound(err) }

// inspectImage looks for an image on the node.
func (w *worker) inspectImage(ctx context.Context, pod *corev1.Pod, action Action) (effect, error) {
	ref, path := action.Subject, fieldPath(pod, action.Container)
	image, err := w.agent.cfg.Engine.Image(ctx, ref)
	switch {
	case errors.Is(err, ErrImageNotFound):
		return nil, &failure{reasonImageMissing, err}
	case errors.Is(err, ErrImageInvalid):
		w.warn(pod, path, "InspectFailed", fmt.Sprintf("Failed to apply default image tag %q: %v", ref, err))
		w.warn(pod, path, "Failed", "Error: "+reasonImageInvalid)
		return nil, &failure{reasonImageInvalid, fmt.Errorf("failed to apply default image tag %q: %w", ref, err)}
	case err != nil:
		if ctx.Err() == nil {
			w.warn(pod, path, "Failed", fmt.Sprintf("Failed to inspect image %q: %v", ref, err))
		}
		return nil, &failure{reasonImageInspect, fmt.Errorf("failed to inspect image %q: %w", ref, err)}
	}
	w.event(pod, path, "Pulled", fmt.Sprintf("Container image %q already present on machine", ref))
	return func(s *PodState) { s.Images[ref] = ImageFact{Image: image, At: time.Now()} }, nil
}

// pullImage fetches an image with the credentials of the pod's pull secrets.
func (w *worker) pullImage(ctx context.Context, pod *corev1.Pod, action Action) (effect, error) {
	ref, path := action.Subject, fieldPath(pod, action.Container)
	queued := time.Now()
	release, err := slot(ctx, w.agent.pulls)
	if err != nil {
		return nil, err
	}
	defer release()
	w.event(pod, path, "Pulling", fmt.Sprintf("Pulling image %q", ref))
	begun, noted := time.Now(), time.Now()
	image, err := w.agent.cfg.Engine.Pull(ctx, ref, w.auth(ctx, pod, ref), func(p Progress) {
		if time.Since(noted) >= progressEvery && p.TotalBytes > 0 {
			noted = time.Now()
			w.event(pod, path, "Pulling", fmt.Sprintf("Pulling image %q: %d%% of %d MiB", ref, 100*p.DoneBytes/p.TotalBytes, p.TotalBytes>>20))
		}
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		reason := reasonImagePull
		if errors.Is(err, ErrImageInvalid) {
			reason = reasonImageInvalid
		}
		w.warn(pod, path, "Failed", fmt.Sprintf("Failed to pull image %q: %v", ref, err))
		w.warn(pod, path, "Failed", "Error: "+reason)
		return nil, &failure{reason, err}
	}
	w.event(pod, path, "Pulled", fmt.Sprintf("Successfully pulled image %q in %s (%s including waiting). Image size: %d bytes.",
		ref, time.Since(begun).Truncate(time.Millisecond), time.Since(queued).Truncate(time.Millisecond), image.Size))
	return func(s *PodState) { s.Images[ref] = ImageFact{Image: image, At: time.Now(), Pulled: true} }, nil
}

// auth collects the credentials that the pod's pull secrets hold for an image's registry, the most specific first. A secret that is
// missing is reported, and the pull is tried without it.
func (w *worker) auth(ctx context.Context, pod *corev1.Pod, ref string) []Auth {
	var out []Auth
	for _, s := range pod.Spec.ImagePullSecrets {
		secret, err := w.agent.cfg.Objects.secret(ctx, pod.Namespace, s.Name)
		if err == nil {
			var found []Auth
			found, err = secretAuth(secret, ref)
			out = append(out, found...)
		}
		if err != nil && ctx.Err() == nil {
			w.warn(pod, "", "FailedToRetrieveImagePullSecret", fmt.Sprintf("Unable to use image pull secret %q; attempting to pull the image may not succeed: %v", s.Name, err))
		}
	}
	return out
}

// registryLogin is one entry of a Docker configuration file.
type registryLogin struct {
	Username, Password, Auth     string
	IdentityToken, RegistryToken string
}

// secretAuth returns what a pull secret (either of the two Docker formats) holds for an image.
func secretAuth(secret *corev1.Secret, ref string) ([]Auth, error) {
	logins := map[string]registryLogin{}
	switch secret.Type {
	case corev1.SecretTypeDockerConfigJson:
		var file struct{ Auths map[string]registryLogin }
		if err := json.Unmarshal(secret.Data[corev1.DockerConfigJsonKey], &file); err != nil {
			return nil, fmt.Errorf("not a Docker configuration: %w", err)
		}
		logins = file.Auths
	case corev1.SecretTypeDockercfg:
		if err := json.Unmarshal(secret.Data[corev1.DockerConfigKey], &logins); err != nil {
			return nil, fmt.Errorf("not a Docker configuration: %w", err)
		}
	default:
		return nil, fmt.Errorf("type %q holds no registry credentials", secret.Type)
	}
	parsed, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return nil, nil // the pull says so better
	}
	repository := canonicalHost(parsed.Context().RegistryStr()) + "/" + parsed.Context().RepositoryStr()
	var out []Auth
	longest := -1
	for key, login := range logins {
		prefix := canonicalHost(key)
		if repository != prefix && !strings.HasPrefix(repository, prefix+"/") {
			continue
		}
		auth, err := login.auth()
		if err != nil {
			return nil, err
		}
		if len(prefix) > longest {
			longest, out = len(prefix), append([]Auth{auth}, out...)
		} else {
			out = append(out, auth)
		}
	}
	return out, nil
}

// canonicalHost reduces the spellings of a registry ("https://index.docker.io/v1/") to one.
func canonicalHost(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s = strings.TrimSuffix(s, "/")
	host, rest, _ := strings.Cut(s, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if rest == "" || rest == "v1" || rest == "v2" {
		return host
	}
	return host + "/" + rest
}

func (l registryLogin) auth() (Auth, error) {
	a := Auth{Username: l.Username, Password: l.Password, IdentityToken: l.IdentityToken, RegistryToken: l.RegistryToken}
	if l.Auth != "" && a.Username == "" {
		raw, err := base64.StdEncoding.DecodeString(l.Auth)
		if err != nil {
			return a, fmt.Errorf("auth is not base64: %w", err)
		}
		a.Username, a.Password, _ = strings.Cut(string(raw), ":")
		a.Password = strings.TrimRight(a.Password, "\x00")
	}
	return a, nil
}
