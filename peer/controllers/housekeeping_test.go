package controllers_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// TestLimitRange: what is not said gets its defaults, what is too much or too little is refused with a reason.
func TestLimitRange(t *testing.T) {
	namespace(t, "ranged")
	list := func(cpu string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	}
	limits := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "range"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
		Type: corev1.LimitTypeContainer, Min: list("100m"), Max: list("2"), Default: list("1"), DefaultRequest: list("500m"),
	}}}}
	must(client.CoreV1().LimitRanges("ranged").Create(t.Context(), limits, metav1.CreateOptions{}))(t)
	eventually(t, func() error { // admission reads them from an informer
		made, err := client.CoreV1().Pods("ranged").Create(t.Context(), pod("plain"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return err
		}
		if got := made.Spec.Containers[0].Resources; got.Requests.Cpu().String() != "500m" || got.Limits.Cpu().String() != "1" {
			return fmt.Errorf("resources %+v", got)
		}
		return nil
	})
	for request, want := range map[string]string{"3": "maximum cpu usage per Container is 2", "10m": "minimum cpu usage per Container is 100m"} {
		p := pod("asks")
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list(request), Limits: list(request)}
		if _, err := client.CoreV1().Pods("ranged").Create(t.Context(), p, metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("a request for %s: %v", request, err)
		}
	}
}

// TestTokens: a token says who its bearer is for as long as its account lives.
func TestTokens(t *testing.T) {
	namespace(t, "tokens")
	must(client.CoreV1().ServiceAccounts("tokens").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{}))(t)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](600)}}
	token := must(client.CoreV1().ServiceAccounts("tokens").CreateToken(t.Context(), "robot", request, metav1.CreateOptions{}))(t).Status
	if left := token.ExpirationTimestamp.Sub(metav1.Now().Time).Seconds(); left < 500 || left > 600 {
		t.Errorf("it expires in %v s", left)
	}
	review := func(token string) *authenticationv1.TokenReviewStatus {
		r := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
		return &must(client.AuthenticationV1().TokenReviews().Create(t.Context(), r, metav1.CreateOptions{}))(t).Status
	}
	if s := review(token.Token); !s.Authenticated || s.User.Username != "system:serviceaccount:tokens:robot" {
		t.Errorf("reviewed as %+v", s)
	}
	if s := review(token.Token[:len(token.Token)-8] + "AAAAAAAA"); s.Authenticated {
		t.Error("a forged signature is taken")
	}
	if err := client.CoreV1().ServiceAccounts("tokens").Delete(t.Context(), "robot", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if review(token.Token).Authenticated {
			return errors.New("the token of a deleted account is taken")
		}
		return nil
	})
}

// TestDefaultAccountComesBack: a namespace is never without it.
func TestDefaultAccountComesBack(t *testing.T) {
	namespace(t, "account")
	before := must(client.CoreV1().ServiceAccounts("account").Get(t.Context(), "default", metav1.GetOptions{}))(t).UID
	if err := client.CoreV1().ServiceAccounts("account").Delete(t.Context(), "default", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		now, err := client.CoreV1().ServiceAccounts("account").Get(t.Context(), "default", metav1.GetOptions{})
		if err == nil && now.UID == before {
			err = errors.New("it is still the old one")
		}
		return err
	})
}

// TestOwnersInACircle: objects that own each other go together when one of them is deleted, and hold nobody up; an owner that never was
// takes what names it with it.
func TestOwnersInACircle(t *testing.T) {
	namespace(t, "circle")
	maps := client.CoreV1().ConfigMaps("circle")
	owned := func(name string, by *corev1.ConfigMap) *corev1.ConfigMap {
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if by != nil {
			object.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: by.Name, UID: by.UID, BlockOwnerDeletion: ptr.To(true)}}
		}
		return object
	}
	for name, policy := range map[string]metav1.DeletionPropagation{"back": metav1.DeletePropagationBackground, "fore": metav1.DeletePropagationForeground} {
		first := must(maps.Create(t.Context(), owned(name+"-1", nil), metav1.CreateOptions{}))(t)
		second := must(maps.Create(t.Context(), owned(name+"-2", first), metav1.CreateOptions{}))(t)
		third := must(maps.Create(t.Context(), owned(name+"-3", second), metav1.CreateOptions{}))(t)
		first.OwnerReferences = owned("", third).OwnerReferences
		must(maps.Update(t.Context(), first, metav1.UpdateOptions{}))(t)
		if err := maps.Delete(t.Context(), second.Name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
			t.Fatal(err)
		}
	}
	orphan := owned("orphan", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "never", UID: "was"}})
	must(maps.Create(t.Context(), orphan, metav1.CreateOptions{}))(t)
	eventually(t, func() error {
		list, err := maps.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		var left []string
		for _, m := range list.Items {
			if m.Name != "kube-root-ca.crt" {
				left = append(left, m.Name)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
}
