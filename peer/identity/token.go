package identity

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
)

// Token lets one or more hosts join until it expires. Its text is
// `id.secret.pin`: the first two parts are a Kubernetes bootstrap token
// (kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens), kept as a
// Secret in kube-system so that upstream's token cleaner removes it in time;
// the pin lets the joiner recognise the cluster before it tells the secret.
type Token struct {
	ID     string // 6 characters of a-z0-9, public
	Secret string // 16 characters of a-z0-9
	Pin    string // see Cluster.Pin; 32 characters of a-z2-7
}

const tokenAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

var (
	tokenIDPattern     = regexp.MustCompile(bootstrapapi.BootstrapTokenIDPattern)
	tokenSecretPattern = regexp.MustCompile(`\A[a-z0-9]{16}\z`)
	pinPattern         = regexp.MustCompile(`\A[a-z2-7]{32}\z`)
)

// NewToken makes a token for the cluster with the given pin.
func NewToken(pin string) (Token, error) {
	id, err := randomText(bootstrapapi.BootstrapTokenIDBytes)
	if err != nil {
		return Token{}, err
	}
	secret, err := randomText(bootstrapapi.BootstrapTokenSecretBytes)
	return Token{ID: id, Secret: secret, Pin: pin}, err
}

// randomText draws evenly from the alphabet by rejecting the bytes that would
// favour its first letters.
func randomText(length int) (string, error) {
	const even = 256 - 256%len(tokenAlphabet)
	text := make([]byte, 0, length)
	buffer := make([]byte, 64)
	for len(text) < length {
		if _, err := rand.Read(buffer); err != nil {
			return "", fmt.Errorf("make a token: %w", err)
		}
		for _, b := range buffer {
			if int(b) < even && len(text) < length {
				text = append(text, tokenAlphabet[int(b)%len(tokenAlphabet)])
			}
		}
	}
	return string(text), nil
}

// ParseToken reads `id.secret.pin`. Its errors never repeat the secret.
func ParseToken(text string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	switch {
	case text == "":
		return Token{}, errors.New("a token is needed to join: make one on any peer with `peer token create` and give it with --token")
	case len(parts) == 2:
		return Token{}, errors.New("the token lacks its third part, the pin of the cluster: copy it whole, as `peer token create` printed it")
	case len(parts) != 3:
		return Token{}, fmt.Errorf("the token has %d parts instead of three (id.secret.pin): copy it whole, as `peer token create` printed it", len(parts))
	case !tokenIDPattern.MatchString(parts[0]):
		return Token{}, errors.New("the token's first part must be 6 characters of a-z and 0-9: copy it whole, as `peer token create` printed it")
	case !tokenSecretPattern.MatchString(parts[1]):
		return Token{}, errors.New("the token's second part must be 16 characters of a-z and 0-9: copy it whole, as `peer token create` printed it")
	case !pinPattern.MatchString(parts[2]):
		return Token{}, errors.New("the token's third part must be 32 characters of a-z and 2-7: copy it whole, as `peer token create` printed it")
	}
	return Token{ID: parts[0], Secret: parts[1], Pin: parts[2]}, nil
}

// String is the text that ParseToken reads. It holds the secret.
func (t Token) String() string { return t.ID + "." + t.Secret + "." + t.Pin }

// SecretName is the name of the Secret in kube-system that stands for a token.
func SecretName(tokenID string) string { return bootstrapapi.BootstrapTokenSecretPrefix + tokenID }

// BootstrapSecret is the token as the Secret that makes it valid. A zero
// expires means never.
func (t Token) BootstrapSecret(expires time.Time, description string) *corev1.Secret {
	data := map[string][]byte{
		bootstrapapi.BootstrapTokenIDKey:               []byte(t.ID),
		bootstrapapi.BootstrapTokenSecretKey:           []byte(t.Secret),
		bootstrapapi.BootstrapTokenUsageAuthentication: []byte("true"),
	}
	if !expires.IsZero() {
		data[bootstrapapi.BootstrapTokenExpirationKey] = []byte(expires.UTC().Format(time.RFC3339))
	}
	if description != "" {
		data[bootstrapapi.BootstrapTokenDescriptionKey] = []byte(description)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: SecretName(t.ID)},
		Type:       bootstrapapi.SecretTypeBootstrapToken,
		Data:       data,
	}
}

// TokenRecord is what the cluster knows about a token.
type TokenRecord struct {
	ID          string
	Secret      string
	Expires     time.Time // zero: never
	Description string
	// Usable says that the token was meant for authentication.
	Usable bool
}

// TokenFromSecret reads a bootstrap token's Secret. One that Kubernetes would
// call invalid is refused, an unreadable expiry included: never is too long.
func TokenFromSecret(secret *corev1.Secret) (TokenRecord, error) {
	record := TokenRecord{
		ID:          string(secret.Data[bootstrapapi.BootstrapTokenIDKey]),
		Secret:      string(secret.Data[bootstrapapi.BootstrapTokenSecretKey]),
		Description: string(secret.Data[bootstrapapi.BootstrapTokenDescriptionKey]),
		Usable:      string(secret.Data[bootstrapapi.BootstrapTokenUsageAuthentication]) == "true",
	}
	if secret.Type != bootstrapapi.SecretTypeBootstrapToken {
		return TokenRecord{}, fmt.Errorf("secret %s is of type %q, not a bootstrap token", secret.Name, secret.Type)
	}
	if !tokenIDPattern.MatchString(record.ID) || secret.Name != SecretName(record.ID) {
		return TokenRecord{}, fmt.Errorf("secret %s does not carry the name of its token ID %q", secret.Name, record.ID)
	}
	if !tokenSecretPattern.MatchString(record.Secret) {
		return TokenRecord{}, fmt.Errorf("secret %s holds no valid token secret", secret.Name)
	}
	if text := string(secret.Data[bootstrapapi.BootstrapTokenExpirationKey]); text != "" {
		expires, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return TokenRecord{}, fmt.Errorf("secret %s has an unreadable expiration %q", secret.Name, text)
		}
		record.Expires = expires
	}
	return record, nil
}

// Expired tells whether the token is over at now.
func (r TokenRecord) Expired(now time.Time) bool {
	return !r.Expires.IsZero() && !now.Before(r.Expires)
}

// Check accepts or refuses a presented secret at now. A wrong secret is
// refused before anything about the token is told, and in constant time.
func (r TokenRecord) Check(id, secret string, now time.Time) error {
	same := subtle.ConstantTimeCompare([]byte(r.ID), []byte(id)) & subtle.ConstantTimeCompare([]byte(r.Secret), []byte(secret))
	if same != 1 || r.Secret == "" {
		return refusal(ReasonWrongToken, "the token is not known to this cluster: it is mistyped, deleted or long expired; make a new one on any peer with `peer token create`")
	}
	if r.Expired(now) {
		return refusal(ReasonExpiredToken, "the token expired at %s: make a new one on any peer with `peer token create`", stamp(r.Expires))
	}
	if !r.Usable {
		return refusal(ReasonWrongToken, "the token is not made for joining (its usage-bootstrap-authentication is not true)")
	}
	return nil
}
