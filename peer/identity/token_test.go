package identity

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	"pgregory.net/rapid"
)

const goodPin = "abcdefghijklmnopqrstuvwxyz234567"

func TestTokenText(t *testing.T) {
	token, err := NewToken(goodPin)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(bootstrapapi.BootstrapTokenPattern).MatchString(token.ID + "." + token.Secret) {
		t.Errorf("%s.%s is not a Kubernetes bootstrap token", token.ID, token.Secret)
	}
	read, err := ParseToken("  " + token.String() + "\n")
	if err != nil || read != token {
		t.Errorf("%v: %v", err, read)
	}
	if pin := newCluster(t, noon).Pin(); !pinPattern.MatchString(pin) {
		t.Errorf("pin %q", pin)
	}
}

func TestParseTokenErrors(t *testing.T) {
	const secret = "0123456789abcdef"
	for _, c := range []struct{ text, want string }{
		{"", "a token is needed"},
		{"abcdef." + secret, "lacks its third part"},
		{"abcdef", "has 1 parts"},
		{"abcdef." + secret + "." + goodPin + ".x", "has 4 parts"},
		{"ABCDEF." + secret + "." + goodPin, "first part"},
		{"abcde." + secret + "." + goodPin, "first part"},
		{"abcdef." + secret[1:] + "." + goodPin, "second part"},
		{"abcdef." + secret + "." + goodPin[1:], "third part"},
		{"abcdef." + secret + "." + strings.ToUpper(goodPin), "third part"},
		{"abcdef." + secret + "\n." + goodPin, "second part"},
	} {
		_, err := ParseToken(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), secret[1:]) {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

func TestTokenSecretRoundTrip(t *testing.T) {
	token := Token{ID: "abcdef", Secret: "0123456789abcdef", Pin: goodPin}
	record, err := TokenFromSecret(token.BootstrapSecret(noon, "for the lab"))
	if err != nil {
		t.Fatal(err)
	}
	if record != (TokenRecord{ID: "abcdef", Secret: token.Secret, Expires: noon, Description: "for the lab", Usable: true}) {
		t.Errorf("%+v", record)
	}
	if secret := token.BootstrapSecret(noon, ""); secret.Namespace != "kube-system" || secret.Name != "bootstrap-token-abcdef" || secret.Type != "bootstrap.kubernetes.io/token" {
		t.Errorf("upstream's token cleaner would not find %s/%s of type %s", secret.Namespace, secret.Name, secret.Type)
	}
	for name, damage := range map[string]func(*corev1.Secret){
		"type":       func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque },
		"name":       func(s *corev1.Secret) { s.Name = "bootstrap-token-zzzzzz" },
		"secret":     func(s *corev1.Secret) { s.Data["token-secret"] = nil },
		"expiration": func(s *corev1.Secret) { s.Data["expiration"] = []byte("tomorrow") },
	} {
		secret := token.BootstrapSecret(noon, "")
		damage(secret)
		if _, err := TokenFromSecret(secret); err == nil {
			t.Errorf("a secret with a wrong %s was read", name)
		}
	}
}

func TestTokenCheck(t *testing.T) {
	good := TokenRecord{ID: "abcdef", Secret: "0123456789abcdef", Expires: noon.Add(time.Hour), Usable: true}
	never, unusable := good, good
	never.Expires = time.Time{}
	unusable.Usable = false
	for _, c := range []struct {
		name       string
		record     TokenRecord
		id, secret string
		now        time.Time
		want       Reason
	}{
		{"good", good, "abcdef", "0123456789abcdef", noon, ""},
		{"a moment before its end", good, "abcdef", "0123456789abcdef", noon.Add(time.Hour - 1), ""},
		{"at its end", good, "abcdef", "0123456789abcdef", noon.Add(time.Hour), ReasonExpiredToken},
		{"never ends", never, "abcdef", "0123456789abcdef", noon.Add(1e6 * time.Hour), ""},
		{"wrong secret", good, "abcdef", "0123456789abcdeg", noon, ReasonWrongToken},
		{"short secret", good, "abcdef", "0123456789abcde", noon, ReasonWrongToken},
		{"empty secret", good, "abcdef", "", noon, ReasonWrongToken},
		{"wrong secret of an expired token", good, "abcdef", "x", noon.Add(2 * time.Hour), ReasonWrongToken},
		{"unknown token", TokenRecord{}, "", "", noon, ReasonWrongToken},
		{"not for joining", unusable, "abcdef", "0123456789abcdef", noon, ReasonWrongToken},
	} {
		err := c.record.Check(c.id, c.secret, c.now)
		var refused *Refusal
		if errors.As(err, &refused) && refused.Reason != c.want || err == nil && c.want != "" || err != nil && c.want == "" {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestCheckClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		difference := time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "difference"))
		err := CheckClock(noon.Add(difference), noon)
		if (err != nil) != (difference.Abs() > MaxClockDifference) {
			t.Fatalf("%s apart: %v", difference, err)
		}
		if err != nil && (!strings.Contains(err.Error(), stamp(noon)) || !strings.Contains(err.Error(), stamp(noon.Add(difference)))) {
			t.Fatalf("not both times in %q", err)
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add("abcdef.0123456789abcdef." + goodPin)
	f.Add("..")
	f.Add("")
	f.Add("abcdef.0123456789abcdef.\x00")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		if again, err := ParseToken(token.String()); err != nil || again != token {
			t.Errorf("%q: %v", text, err)
		}
	})
}
