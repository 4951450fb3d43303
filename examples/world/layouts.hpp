// examples/world/layouts.hpp — six hand-made web page layouts around the same kind of text.
// Marks: @TITLE@ @NAME@ @SLUG@ @PARAGRAPHS@ @SPEC_HEADING@ @SPECS@ @QUESTION_HEADING@ @QUESTIONS@ @QUOTE_OPENING@
// @QUOTES@. All that stands around them is what real pages carry too: menus, banners, scripts, advertisements,
// comments. None of it belongs to the page's message, so an extractor should drop it and no model should learn it.
#pragma once

#include <array>
#include <string_view>

namespace world {

/// A layout and how its data sheet is written.
struct Layout {
  enum class Sheet { table, plain_table, list };
  std::string_view site;  ///< file name prefix
  Sheet sheet;
  std::string_view html;
};

inline constexpr std::string_view shop_html =
    R"html(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@ | Corner Cupboard Shop</title>
<meta name="description" content="Free returns within thirty days. Corner Cupboard ships to forty countries.">
<link rel="stylesheet" href="/static/shop.css">
<style>.basket { float: right } .price-old { text-decoration: line-through } @media (max-width: 600px) { )html"
    R"html(nav { display: none } }</style>
<script>window.dataLayer = window.dataLayer || []; dataLayer.push({"page": "product", "value": 999, )html"
    R"html("currency": "EUR"});</script>
</head>
<body class="product">
<div id="cookie-banner" class="cookie-consent"><p>We use cookies and similar tools to show you offers.</p>)html"
    R"html(<button>Accept all</button> <button>Only necessary</button></div>
<header class="site-header">
<a class="logo" href="/">Corner Cupboard</a>
<nav><ul><li><a href="/new">New in</a></li><li><a href="/kitchen">Kitchen</a></li><li>)html"
    R"html(<a href="/garden">Garden</a></li><li><a href="/sale">Sale %</a></li><li>)html"
    R"html(<a href="/account">My account</a></li></ul></nav>
<form action="/search"><input name="q" placeholder="Search 12,000 articles"><button>Search</button></form>
<div class="basket"><a href="/basket">Basket (0)</a></div>
</header>
<ol class="breadcrumb"><li><a href="/">Home</a></li><li><a href="/kitchen">Kitchen</a></li><li>)html"
    R"html(<a href="/kitchen/helpers">Small helpers</a></li></ol>
<main>
<h1>@TITLE@</h1>
@PARAGRAPHS@<h2>@SPEC_HEADING@</h2>
@SPECS@<h2>@QUESTION_HEADING@</h2>
@QUESTIONS@<blockquote><p>@QUOTE_OPENING@ @QUOTES@</p></blockquote>
</main>
<aside class="related"><h2>Customers also looked at</h2>
<ul><li><a href="/p/8812">Enamel kettle, blue, 24.95</a></li><li>)html"
    R"html(<a href="/p/1207">Set of six egg cups, 9.90</a></li><li>)html"
    R"html(<a href="/p/5531">Wall clock with pendulum, 119.00</a></li></ul></aside>
<footer><p>Newsletter: get 10 % off your next order.</p><ul><li><a href="/imprint">Imprint</a></li><li>)html"
    R"html(<a href="/privacy">Privacy</a></li><li><a href="/shipping">Shipping and returns</a></li></ul>)html"
    R"html(<p>&copy; 2031 Corner Cupboard Ltd. All prices include VAT.</p></footer>
<script src="/static/shop.js" async></script>
</body>
</html>
)html";

inline constexpr std::string_view press_html =
    R"html(<!doctype html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<title>@TITLE@ - The Wire Room</title>
<link rel="canonical" href="https://wire-room.example/releases/@SLUG@">
<meta property="og:site_name" content="The Wire Room">
<script type="application/ld+json">{"@context": "https://schema.org", "@type": "NewsArticle", "publisher": )html"
    R"html({"name": "The Wire Room"}, "isAccessibleForFree": true}</script>
</head>
<body>
<div class="skip"><a href="#content">Skip to content</a></div>
<div class="topbar"><span>Markets: <b>+0.4 %</b></span> <span>Register</span> <span>Log in</span></div>
<nav aria-label="Main"><a href="/">Latest</a> | <a href="/energy">Energy</a> | <a href="/health">Health</a> )html"
    R"html(| <a href="/transport">Transport</a> | <a href="/contact">Send a release</a></nav>
<article id="content">
<header><p class="meta">Press release &middot; for immediate publication &middot; 3 min read</p>)html"
    R"html(<h1>@TITLE@</h1></header>
<section class="body">
@PARAGRAPHS@<blockquote>@QUOTE_OPENING@ @QUOTES@</blockquote>
<h3>@SPEC_HEADING@</h3>
@SPECS@<h3>@QUESTION_HEADING@</h3>
@QUESTIONS@</section>
</article>
<section class="more-releases"><h4>More from the wire</h4>
<p><a href="/releases/9911">Harbour bridge closed for repairs until spring</a></p>
<p><a href="/releases/9906">Record number of visitors at the annual boat fair</a></p>
<p><a href="/releases/9898">Regional airline orders twelve aircraft</a></p></section>
<footer class="legal"><small>The Wire Room distributes releases as received and takes no responsibility for )html"
    R"html(their content. Terms of use. Accessibility. Do not sell my data.</small></footer>
<noscript><img src="/pixel.gif" alt=""></noscript>
</body>
</html>
)html";

inline constexpr std::string_view magazine_html =
    R"html(<!DOCTYPE html>
<html lang="en">
<head>
<meta http-equiv="Content-Type" content="text/html; charset=utf-8">
<title>@TITLE@ - Hearth &amp; Gadget magazine</title>
<style type="text/css">
  .ad { border: 1px solid #ccc; background: #fafafa }
  .pull { font-size: 140%; margin: 1em 2em }
</style>
<script>(function (w) { w._tracker = ["load", "magazine", 42]; })(window);</script>
</head>
<body>
<div id="page">
<div id="masthead"><a href="/"><img src="/logo.svg" alt="Hearth and Gadget"></a><div class="menu">)html"
    R"html(<a href="/tests">Tests</a><a href="/recipes">Recipes</a><a href="/letters">Letters</a>)html"
    R"html(<a href="/subscribe">Subscribe for 1 euro a week</a></div></div>
<div class="ad"><p>Advertisement</p><p>Sleep better on the Cloudrest mattress. Now 40 % off, this week only!</p></div>
<div class="article">
<h1>@TITLE@</h1>
<div class="byline">By our test desk | Photographs: staff | <a href="#comments">17 comments</a></div>
<figure><img src="/img/@SLUG@.jpg" alt=""><figcaption>Photograph: staff</figcaption></figure>
<div class="text">
@PARAGRAPHS@</div>
<h2>@QUESTION_HEADING@</h2>
<div class="text">
@QUESTIONS@</div>
<div class="text"><p>@QUOTE_OPENING@ @QUOTES@</p></div>
<h2>@SPEC_HEADING@</h2>
@SPECS@</div>
<aside class="sidebar"><h3>Most read</h3><ol><li><a href="/1">Why your sourdough does not rise</a></li><li>)html"
    R"html(<a href="/2">Seven mistakes with cast iron pans</a></li><li>)html"
    R"html(<a href="/3">The best raincoats under 100</a></li></ol></aside>
<div id="comments"><h3>Comments</h3><p class="comment"><b>gardener77</b>: First! Is it just me or has the )html"
    R"html(letters page become shorter?</p><p class="comment"><b>Old Tom</b>: My toaster from 1982 )html"
    R"html(still works.</p></div>
<div id="footer">Contact - Advertise with us - Jobs - Cookie settings - Hearth &amp; Gadget is a title of )html"
    R"html(Two Rivers Media</div>
</div>
</body>
</html>
)html";

inline constexpr std::string_view homepage_html =
    R"html(<HTML>
<HEAD>
<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=iso-8859-1">
<TITLE>@TITLE@</TITLE>
</HEAD>
<BODY BGCOLOR="#FFFFEE" TEXT="#000000" LINK="#0000CC">
<TABLE WIDTH="100%" BORDER=0 CELLPADDING=4>
<TR><TD COLSPAN=2 BGCOLOR="#003366"><FONT COLOR="white" SIZE="5">Uncle Henning's gadget page</FONT></TD></TR>
<TR><TD WIDTH="150" VALIGN="top" BGCOLOR="#DDDDCC">
<A HREF="index.html">Home</A><BR>
<A HREF="links.html">Links</A><BR>
<A HREF="guestbook.html">Guestbook</A><BR>
<A HREF="trains.html">My model trains</A><BR>
<A HREF="holiday.html">Holiday pictures</A><BR><BR>
<FONT SIZE="1">You are visitor no. 004711</FONT>
</TD><TD VALIGN="top">
<H1>@TITLE@</H1>
@PARAGRAPHS@<H3>@SPEC_HEADING@</H3>
@SPECS@<H3>@QUESTION_HEADING@</H3>
@QUESTIONS@<P>@QUOTE_OPENING@ @QUOTES@</P>
</TD></TR>
<TR><TD COLSPAN=2 BGCOLOR="#DDDDCC" ALIGN="center"><FONT SIZE="1">Best viewed at 800 x 600 | <A )html"
    R"html(HREF="mailto:henning@uncle.example">Mail me</A> | Member of the Gadget Web Ring: <A )html"
    R"html(HREF="#">previous</A> - <A HREF="#">random</A> - <A HREF="#">next</A></FONT></TD></TR>
</TABLE>
</BODY>
</HTML>
)html";

inline constexpr std::string_view blog_html =
    R"html(<!DOCTYPE html>
<html lang="en" class="no-js">
<head>
<meta charset="utf-8">
<title>@TITLE@ &#8211; Things on my desk</title>
<link rel="alternate" type="application/rss+xml" href="/feed">
<style>.widget{padding:1rem}.share a{margin-right:.5rem}</style>
</head>
<body class="post-template single">
<a class="skip-link screen-reader-text" href="#main">Skip to content</a>
<header id="site-header"><p class="site-title"><a href="/">Things on my desk</a></p>)html"
    R"html(<p class="tagline">A blog about small objects, since 2009</p>
<nav class="menu"><ul><li><a href="/about">About me</a></li><li><a href="/archive">Archive</a></li><li>)html"
    R"html(<a href="/now">Now</a></li></ul></nav></header>
<main id="main">
<article class="post">
<h1 class="entry-title">@TITLE@</h1>
<div class="entry-meta">Posted by Ines <span class="sep">/</span> filed under <a href="/tag/desk">desk</a>, )html"
    R"html(<a href="/tag/small">small</a></div>
<div class="entry-content">
@PARAGRAPHS@<blockquote><p>@QUOTE_OPENING@ @QUOTES@</p></blockquote>
<h2>@QUESTION_HEADING@</h2>
@QUESTIONS@<h2>@SPEC_HEADING@</h2>
@SPECS@</div>
<div class="share"><span>Share this:</span> <a href="#">Mail</a> <a href="#">Print</a> <a href="#">Copy link</a></div>
</article>
<nav class="post-navigation"><a rel="prev" href="/why-i-gave-up-on-pens">Why I gave up on fountain pens</a> )html"
    R"html(<a rel="next" href="/a-drawer-for-everything">A drawer for everything</a></nav>
<section id="respond"><h3>Leave a reply</h3><form><p>Your address will not be published. Required fields )html"
    R"html(are marked *</p><textarea></textarea><button>Post comment</button></form></section>
</main>
<aside id="secondary"><section class="widget"><h2>Recent posts</h2><ul><li>)html"
    R"html(<a href="/p1">Nine rubber bands, ranked</a></li><li><a href="/p2">The stapler that came by sea</a>)html"
    R"html(</li></ul></section><section class="widget"><h2>Subscribe by mail</h2>)html"
    R"html(<p>Join 1,204 other readers.</p></section></aside>
<footer id="colophon">Proudly written by hand. Theme: Twenty Drawers. Log in</footer>
<script>document.documentElement.className = "js"; var ad = "Win a holiday for two: the price is 5000 dollars";</script>
</body>
</html>
)html";

inline constexpr std::string_view help_html =
    R"html(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>@TITLE@ : Help centre : Parcel Street</title>
<style>
.hidden { display: none }
.rating button { border-radius: 50% }
</style>
</head>
<body>
<div role="banner" class="header"><div class="brand">Parcel Street help centre</div><div role="search">)html"
    R"html(<input type="search" value="How can we help?"></div></div>
<div role="navigation" class="nav-left"><ul><li><a href="/orders">Orders</a></li><li>)html"
    R"html(<a href="/returns">Returns</a></li><li><a href="/payments">Payments and vouchers</a></li><li>)html"
    R"html(<a href="/account">Account settings</a></li></ul></div>
<div class="alert">Notice: our telephone line is closed on public holidays. Waiting time is about 25 minutes.</div>
<div role="main" class="content">
<h1>@TITLE@</h1>
<h2>@QUESTION_HEADING@</h2>
@QUESTIONS@@PARAGRAPHS@<h2>@SPEC_HEADING@</h2>
@SPECS@<p>@QUOTE_OPENING@ @QUOTES@</p>
</div>
<div class="rating"><p>Was this article helpful?</p><button>Yes</button> <button>No</button>)html"
    R"html(<p>3 out of 5 people found this helpful</p></div>
<div class="related-articles"><h3>Related articles</h3><ul><li>)html"
    R"html(<a href="/a/301">My parcel has not arrived</a></li><li>)html"
    R"html(<a href="/a/302">How to print a return label</a></li><li>)html"
    R"html(<a href="/a/377">Changing your delivery address</a></li></ul></div>
<div class="hidden"><p>Template version 7: do not edit. Placeholder text for the preview window.</p></div>
<div role="contentinfo" class="footer"><p>Parcel Street Ltd | Terms | Privacy | Sitemap | Change language</p></div>
<!-- build 20310914: the old price list of 2019 is in /archive -->
</body>
</html>
)html";

inline constexpr std::array<Layout, 6> layouts{{{"shop", Layout::Sheet::table, shop_html},
                                                {"press", Layout::Sheet::list, press_html},
                                                {"magazine", Layout::Sheet::table, magazine_html},
                                                {"homepage", Layout::Sheet::plain_table, homepage_html},
                                                {"blog", Layout::Sheet::list, blog_html},
                                                {"help", Layout::Sheet::plain_table, help_html}}};

}  // namespace world
